"""Reads the log of a container attempt back: what `kubectl logs` needs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from asyncinotify import Inotify, Mask

from wasmlet.runtime.crilog import Line, parse_line, rotated

_BLOCK = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """How much of a log to read; None means all of it."""

    follow: bool = False
    # Lines from the end.
    tail: int | None = None
    limit_bytes: int | None = None
    since: datetime | None = None
    # Put the time before each line.
    timestamps: bool = False


async def read_log(path: Path, options: LogOptions, ended: asyncio.Event) -> AsyncIterator[bytes]:
    """Yield a log's content, in pieces of many lines.

    With `follow`, it goes on until `ended` is set and all is read. A log that does not exist is an empty one.
    """
    render = _Renderer(options)
    async for lines in _lines(path, options, ended):
        piece = render(lines)
        if piece:
            yield piece
        if render.full:
            return


class _Renderer:
    """Turns lines of the file into what the reader sees."""

    def __init__(self, options: LogOptions) -> None:
        self._since = options.since
        self._timestamps = options.timestamps
        self._left = options.limit_bytes
        # Parts of one line carry one time, that of the first.
        self._inside_line: dict[bytes, bool] = {}

    @property
    def full(self) -> bool:
        return self._left is not None and self._left <= 0

    def __call__(self, lines: list[bytes]) -> bytes:
        out = bytearray()
        for raw in lines:
            try:
                line = parse_line(raw)
            except ValueError:
                # A line that a crash cut short.
                continue
            if self._since is None or _time(line) >= self._since:
                out += self._text(line)
        if self._left is not None:
            del out[self._left :]
            self._left -= len(out)
        return bytes(out)

    def _text(self, line: Line) -> bytes:
        stamp = b"" if not self._timestamps or self._inside_line.get(line.stream) else line.at + b" "
        self._inside_line[line.stream] = line.partial
        return stamp + line.content + (b"" if line.partial else b"\n")


def _time(line: Line) -> datetime:
    # Python's datetime has microseconds: cut the nanoseconds, and with them the Z.
    return datetime.fromisoformat(line.at[:26].decode()).replace(tzinfo=UTC)


async def _lines(path: Path, options: LogOptions, ended: asyncio.Event) -> AsyncIterator[list[bytes]]:
    """Yield the lines of the log with those of its rotated files, then new ones as they come."""
    if not options.follow:
        for batch in _history(path, options.tail):
            yield batch
            # A long log must not keep others waiting.
            await asyncio.sleep(0)
        return
    # Nothing can be missed between reading and watching, because the watch begins first.
    with Inotify() as inotify:
        inotify.add_watch(path.parent, Mask.MODIFY | Mask.CREATE | Mask.MOVED_TO)
        follower = _Follower(path)
        if options.tail is None:
            for old in rotated(path):
                for batch in _blocks(old):
                    yield batch
        else:
            for batch in _history(path, options.tail):
                yield batch
            follower.skip_to_end()
        try:
            async for batch in _follow(follower, inotify, ended):
                yield batch
        finally:
            follower.close()


async def _follow(follower: _Follower, inotify: Inotify, ended: asyncio.Event) -> AsyncIterator[list[bytes]]:
    waiting = asyncio.create_task(ended.wait())
    try:
        while True:
            # Asked before reading: what is read after the end is all there is.
            over = ended.is_set()
            for batch in follower.read():
                yield batch
                await asyncio.sleep(0)
            if over:
                return
            event = asyncio.ensure_future(inotify.get())
            try:
                await asyncio.wait({event, waiting}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                event.cancel()
    finally:
        waiting.cancel()


class _Follower:
    """Reads on in a log that grows, through its rotations."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._rest = b""

    def skip_to_end(self) -> None:
        self._open()
        if self._file >= 0:
            os.lseek(self._file, 0, os.SEEK_END)

    def read(self) -> Iterator[list[bytes]]:
        """Yield the whole lines that are new."""
        while True:
            if self._file < 0:
                self._open()
            if self._file < 0:
                return
            yield from self._read_on()
            if not self._replaced():
                return
            # The writer has gone on to a new file: nothing is appended to this one any more.
            yield from self._read_on()
            self.close()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._file = -1

    def _read_on(self) -> Iterator[list[bytes]]:
        while data := os.read(self._file, _BLOCK):
            *lines, self._rest = (self._rest + data).split(b"\n")
            if lines:
                yield lines

    def _replaced(self) -> bool:
        try:
            newest = self._path.stat()
        except FileNotFoundError:
            return False
        return newest.st_ino != os.fstat(self._file).st_ino


def _history(path: Path, tail: int | None) -> Iterator[list[bytes]]:
    files = [*rotated(path), path]
    if tail is not None:
        files, skip = _last_lines(files, tail)
    else:
        skip = 0
    for file in files:
        yield from _blocks(file, skip)
        skip = 0


def _blocks(file: Path, offset: int = 0) -> Iterator[list[bytes]]:
    """Yield the lines of a file from an offset, a block's worth at a time."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with os.fdopen(descriptor, "rb", buffering=0) as source:
        source.seek(offset)
        rest = b""
        while data := source.read(_BLOCK):
            *lines, rest = (rest + data).split(b"\n")
            if lines:
                yield lines


def _last_lines(files: list[Path], count: int) -> tuple[list[Path], int]:
    """Where the last `count` lines begin: the files to read, and the offset in the first of them.

    Reads backwards from the end, so that a long log costs no more than what is asked for. Lines written in parts count
    once.
    """
    if count == 0:
        return [], 0
    for index in range(len(files) - 1, -1, -1):
        found, offset = _offset_of_last(files[index], count)
        if found == count:
            return files[index:], offset
        count -= found
    return files, 0


def _offset_of_last(file: Path, count: int) -> tuple[int, int]:
    """How many of the last `count` lines a file holds, and the offset at which they begin."""
    found, start = 0, 0
    for offset, line in _backwards(file):
        if found == 0 or _ends_line(line):
            if found == count:
                return found, start
            found += 1
        start = offset
    return found, 0


def _backwards(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file from its end, each with its offset."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with os.fdopen(descriptor, "rb", buffering=0) as source:
        position = source.seek(0, os.SEEK_END)
        first = b""
        while position > 0:
            size = min(_BLOCK, position)
            position -= size
            source.seek(position)
            data = source.read(size) + first
            # What stands before the first newline begins in the block before.
            first, *lines = data.split(b"\n")
            end = position + len(data)
            for line in reversed(lines):
                begin = end - len(line)
                if line:
                    yield begin, line
                end = begin - 1
        if first:
            yield 0, first


def _ends_line(line: bytes) -> bool:
    try:
        return not parse_line(line).partial
    except ValueError:
        return True
