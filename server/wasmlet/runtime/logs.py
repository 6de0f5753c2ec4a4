"""Reads the log of a container attempt back: what `kubectl logs` needs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from asyncinotify import Inotify, Mask

from wasmlet.runtime.crilog import Line, parse_line, rotated

_BLOCK = 64 * 1024
_GROWS = Mask.MODIFY | Mask.CREATE | Mask.MOVED_TO


class Stream(StrEnum):
    """Which output to read."""

    ALL = "all"
    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """How much of a log to read; None means all of it."""

    follow: bool = False
    # Lines from the end, of both streams together.
    tail: int | None = None
    limit_bytes: int | None = None
    since: datetime | None = None
    # Put the time before each line.
    timestamps: bool = False
    stream: Stream = Stream.ALL


async def read_log(path: Path, options: LogOptions, ended: asyncio.Event) -> AsyncGenerator[bytes, None]:
    """Yield a log's content, in pieces of many lines, from the oldest rotated file on.

    With `follow`, it goes on until `ended` is set and all is read. A log that does not exist is an empty one.

    Raises:
        OSError: the log cannot be read, or not be watched.
    """
    render = _Renderer(options)
    with contextlib.closing(_Reader(path)) as reader:
        source = _follow(path, reader, options, ended) if options.follow else _history(reader, options)
        async with contextlib.aclosing(source) as batches:
            async for lines in batches:
                if piece := render(lines):
                    yield piece
                if render.full:
                    return


async def _history(reader: _Reader, options: LogOptions) -> AsyncGenerator[list[bytes], None]:
    reader.begin(options.tail)
    # A writer that is faster than this must not keep it reading for ever.
    reader.stop_at_present_end()
    for lines in reader.read():
        yield lines
        # A long log must not keep others waiting.
        await asyncio.sleep(0)
    if reader.rest:
        yield [reader.rest]


async def _follow(
    path: Path, reader: _Reader, options: LogOptions, ended: asyncio.Event
) -> AsyncGenerator[list[bytes], None]:
    if not path.parent.is_dir():
        return
    # Nothing can be missed between reading and watching, because the watch begins first.
    with Inotify() as inotify:
        inotify.add_watch(path.parent, _GROWS)
        reader.begin(options.tail)
        waiting = asyncio.create_task(ended.wait())
        try:
            while True:
                # Asked before reading: what is read after the end is all there is.
                over = ended.is_set()
                for lines in reader.read():
                    yield lines
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


class _Renderer:
    """Turns lines of the file into what the reader sees."""

    def __init__(self, options: LogOptions) -> None:
        # Times of a log are in UTC and of one length, so they compare as text.
        self._since = b"" if options.since is None else _as_text(options.since)
        self._timestamps = options.timestamps
        self._stream = None if options.stream is Stream.ALL else options.stream.encode()
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
            if line.at >= self._since and self._stream in (None, line.stream):
                out += self._text(line)
        if self._left is not None:
            del out[self._left :]
            self._left -= len(out)
        return bytes(out)

    def _text(self, line: Line) -> bytes:
        stamp = b"" if not self._timestamps or self._inside_line.get(line.stream) else line.at + b" "
        self._inside_line[line.stream] = line.partial
        return stamp + line.content + (b"" if line.partial else b"\n")


def _as_text(time: datetime) -> bytes:
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds").encode() + b"000Z"


class _Reader:
    """Reads forward through a log and its rotations. A file is known by its inode, whatever it is called by now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._end: tuple[int, int] | None = None
        # A line that has no newline yet.
        self.rest = b""

    def begin(self, tail: int | None) -> None:
        """Go to where the last `tail` lines begin; None: to the oldest line."""
        with contextlib.ExitStack() as stack:
            files = self._open_all(stack)
            index, offset = (0, 0) if tail is None else _last_lines(files, tail)
            if files:
                self._file = os.dup(files[index])
                os.lseek(self._file, offset, os.SEEK_SET)

    def stop_at_present_end(self) -> None:
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return
        self._end = (stat.st_ino, stat.st_size)

    def read(self) -> Iterator[list[bytes]]:
        """Yield the whole lines that are new, many at a time."""
        while self._file is not None or self._go_on():
            yield from self._read_on()
            if self._is_newest() or self._at_end():
                return
            # The writer has gone on to another file: nothing is appended to this one any more, but since it was read.
            yield from self._read_on()
            if not self._go_on():
                return

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read_on(self) -> Iterator[list[bytes]]:
        assert self._file is not None  # noqa: S101  for the type checker
        while data := os.read(self._file, self._room()):
            *lines, self.rest = (self.rest + data).split(b"\n")
            if lines:
                yield lines

    def _room(self) -> int:
        assert self._file is not None  # noqa: S101
        if self._end is None or os.fstat(self._file).st_ino != self._end[0]:
            return _BLOCK
        return max(min(_BLOCK, self._end[1] - os.lseek(self._file, 0, os.SEEK_CUR)), 0)

    def _at_end(self) -> bool:
        assert self._file is not None  # noqa: S101
        return self._end is not None and os.fstat(self._file).st_ino == self._end[0]

    def _is_newest(self) -> bool:
        assert self._file is not None  # noqa: S101
        try:
            return self._path.stat().st_ino == os.fstat(self._file).st_ino
        except FileNotFoundError:
            # Between two files, or removed.
            return not rotated(self._path)

    def _go_on(self) -> bool:
        """Turn to the file after the present one, or to the oldest; False if there is none yet."""
        with contextlib.ExitStack() as stack:
            files = self._open_all(stack)
            inodes = [os.fstat(file).st_ino for file in files]
            present = None if self._file is None else os.fstat(self._file).st_ino
            # Where the present one has been removed, what follows it is the oldest that is left.
            index = inodes.index(present) + 1 if present in inodes else 0
            if index >= len(files):
                return False
            self.close()
            self.rest = b""
            self._file = os.dup(files[index])
            return True

    def _open_all(self, stack: contextlib.ExitStack) -> list[int]:
        """The log's files, oldest first: none is missing between two, though the writer may rotate meanwhile."""
        while True:
            before = rotated(self._path)
            files = [fd for path in (*before, self._path) if (fd := _open(path, stack)) is not None]
            if rotated(self._path) == before:
                return files


def _open(path: Path, stack: contextlib.ExitStack) -> int | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    stack.callback(os.close, file)
    return file


def _last_lines(files: list[int], count: int) -> tuple[int, int]:
    """Where the last `count` lines begin: the index of the file, and the offset in it.

    Reads backwards from the end, so that a long log costs no more than what is asked for. Lines written in parts count
    once.
    """
    found, place = 0, (len(files) - 1, os.fstat(files[-1]).st_size if files else 0)
    for index in range(len(files) - 1, -1, -1):
        for offset, line in _backwards(files[index]):
            # The very last may be one that has not ended.
            if found == 0 or _ends_line(line):
                if found == count:
                    return place
                found += 1
            place = (index, offset)
    return 0, 0


def _backwards(file: int) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file from its end, each with its offset."""
    position = os.fstat(file).st_size
    first = b""
    while position > 0:
        size = min(_BLOCK, position)
        position -= size
        data = os.pread(file, size, position) + first
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
