"""The CRI log format: `2026-01-02T03:04:05.000000006Z stdout F line`, one file a container attempt, rotated by size.

https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# A longer line is written in parts, as containerd does.
MAX_LINE = 16 * 1024


def timestamp() -> bytes:
    """The time of day in RFC 3339 with nanoseconds."""
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % nanos


def format_lines(data: bytes, stream: bytes, at: bytes) -> tuple[bytes, bytes]:
    """Bring output into the format; returns what to write and the rest, a line that has not ended yet."""
    whole, newline, rest = data.rpartition(b"\n")
    out = b""
    if newline:
        prefix = at + b" " + stream + b" F "
        if len(whole) <= MAX_LINE or max(map(len, whole.split(b"\n"))) <= MAX_LINE:
            out = prefix + whole.replace(b"\n", b"\n" + prefix) + b"\n"
        else:
            out = b"".join(_split(line, stream, at) for line in whole.split(b"\n"))
    if len(rest) > MAX_LINE:
        cut = len(rest) - len(rest) % MAX_LINE
        out += b"".join(_partial(part, stream, at) for part in _pieces(rest[:cut]))
        rest = rest[cut:]
    return out, rest


def format_rest(rest: bytes, stream: bytes, at: bytes) -> bytes:
    """The form of a last line that never got its newline: partial, so that no reader adds one."""
    return _partial(rest, stream, at) if rest else b""


def _split(line: bytes, stream: bytes, at: bytes) -> bytes:
    *parts, last = _pieces(line) if line else [b""]
    return b"".join(_partial(part, stream, at) for part in parts) + at + b" " + stream + b" F " + last + b"\n"


def _partial(part: bytes, stream: bytes, at: bytes) -> bytes:
    return at + b" " + stream + b" P " + part + b"\n"


def _pieces(data: bytes) -> list[bytes]:
    return [data[start : start + MAX_LINE] for start in range(0, len(data), MAX_LINE)]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log file."""

    at: bytes
    stream: bytes
    partial: bool
    content: bytes


def parse_line(line: bytes) -> Line:
    """Read one line of a log file, without its newline.

    Raises:
        ValueError: it is not in the format.
    """
    parts = line.split(b" ", 3)
    if len(parts) != 4 or parts[1] not in (b"stdout", b"stderr") or parts[2][:1] not in (b"F", b"P"):
        raise ValueError("not a line of a CRI log")
    return Line(at=parts[0], stream=parts[1], partial=parts[2][:1] == b"P", content=parts[3])


def rotated(path: Path) -> list[Path]:
    """The files that were the log before, oldest first."""
    return sorted(path.parent.glob(f"{path.name}.*"))


class LogFile:
    """A log that is being written. A full disk loses output and stops no guest; what was lost is told in the log."""

    def __init__(self, path: Path, max_bytes: int, max_files: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._lost = 0
        self._file = -1
        self._size = 0

    def write(self, lines: bytes, size: int) -> None:
        """Append whole lines, made from `size` bytes of output. What the disk does not take is dropped, and counted."""
        try:
            self._make_room()
            self._tell_of_loss()
            self._append(lines)
        except OSError:
            self._lost += size

    def finish(self) -> None:
        """Close the log; nothing is written any more."""
        try:
            self._tell_of_loss()
        except OSError as error:
            print(f"{self._path} lacks {self._lost} bytes at its end: {error}", file=sys.stderr, flush=True)
        self._close()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _make_room(self) -> None:
        if self._file >= 0 and self._size >= self._max_bytes:
            self._rotate()
        if self._file < 0:
            self._open()

    def _tell_of_loss(self) -> None:
        if self._lost:
            if self._file < 0:
                self._open()
            note = b"wasmlet: %d bytes of output are lost here, the log could not be written\n" % self._lost
            self._append(format_lines(note, b"stderr", timestamp())[0])
            self._lost = 0

    def _append(self, data: bytes) -> None:
        before = self._size
        view = memoryview(data)
        try:
            while view:
                written = os.write(self._file, view)
                self._size += written
                view = view[written:]
        except OSError:
            # No half line stays behind.
            os.ftruncate(self._file, before)
            self._size = before
            raise

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._file).st_size
        if self._size and not self._ends_whole():
            # The process that wrote it before was killed within a line.
            self._append(b"\n")

    def _ends_whole(self) -> bool:
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def _rotate(self) -> None:
        # Nanoseconds keep the names apart and in order.
        now = time.time_ns()
        suffix = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now // 1_000_000_000)) + f".{now % 1_000_000_000:09d}"
        try:
            self._path.rename(self._path.with_name(f"{self._path.name}.{suffix}"))
            for old in _excess(rotated(self._path), self._max_files - 1):
                old.unlink(missing_ok=True)
        except FileNotFoundError:
            # Someone has removed the log: go on with a new one.
            pass
        self._close()


def _excess(files: list[Path], keep: int) -> Iterator[Path]:
    yield from files[: max(len(files) - keep, 0)]
