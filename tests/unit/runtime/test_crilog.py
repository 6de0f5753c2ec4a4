"""The CRI log format: what is written and read back, and how a file is kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmlet.runtime.crilog import (
    MAX_LINE,
    Line,
    LogFile,
    format_lines,
    format_rest,
    parse_line,
    rotated,
    timestamp,
)

AT = b"2026-01-02T03:04:05.123456789Z"
OUTPUT = st.lists(st.one_of(st.binary(max_size=50), st.just(b"\n"), st.just(b"x" * (MAX_LINE + 7)))).map(b"".join)


def written(chunks: list[bytes]) -> bytes:
    """What a stream becomes that arrives in chunks."""
    out, rest = b"", b""
    for chunk in chunks:
        lines, rest = format_lines(rest + chunk, b"stdout", AT)
        out += lines
    return out + format_rest(rest, b"stdout", AT)


@given(st.lists(OUTPUT))
def test_what_is_written_is_read_back(chunks: list[bytes]) -> None:
    file = written(chunks)
    assert file == b"" or file.endswith(b"\n")
    lines = [parse_line(line) for line in file.split(b"\n")[:-1]]
    assert b"".join(line.content + (b"" if line.partial else b"\n") for line in lines) == b"".join(chunks)
    assert all(len(line.content) <= MAX_LINE and line.at == AT and line.stream == b"stdout" for line in lines)


@given(OUTPUT, st.integers(min_value=1, max_value=100_000))
def test_only_the_lines_matter_and_not_how_they_arrive(output: bytes, size: int) -> None:
    chunks = [output[start : start + size] for start in range(0, len(output), size)]
    whole = [line for line in written([output]).split(b"\n") if b" F " in line[:45]]
    parts = [line for line in written(chunks).split(b"\n") if b" F " in line[:45]]
    assert len(whole) == len(parts) == output.count(b"\n")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (b"", []),
        (b"one\n", [b"F one"]),
        (b"\n\n", [b"F ", b"F "]),
        (b"no newline", [b"P no newline"]),
        (b"x" * MAX_LINE + b"\n", [b"F " + b"x" * MAX_LINE]),
        (b"x" * MAX_LINE + b"y\n", [b"P " + b"x" * MAX_LINE, b"F y"]),
        (b"a b  c\n", [b"F a b  c"]),
    ],
)
def test_the_form(output: bytes, expected: list[bytes]) -> None:
    assert written([output]).splitlines() == [AT + b" stdout " + line for line in expected]


@given(st.binary())
def test_a_line_is_parsed_or_refused(line: bytes) -> None:
    try:
        parsed = parse_line(line)
    except ValueError:
        return
    tag = b"P" if parsed.partial else b"F"
    assert line.startswith(parsed.at + b" " + parsed.stream + b" " + tag)
    assert line.endswith(b" " + parsed.content)


def test_a_tag_may_carry_more() -> None:
    """Tags are separated by colons; only the first is defined."""
    assert parse_line(AT + b" stderr P:more text") == Line(at=AT, stream=b"stderr", partial=True, content=b"text")


@pytest.mark.parametrize("line", [b"", b"text", AT, AT + b" stdin F x", AT + b" stdout X x", AT + b" stdout F"])
def test_what_is_no_line(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a line of a CRI log"):
        parse_line(line)


def test_a_timestamp_has_nanoseconds_and_is_utc() -> None:
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", timestamp())


class TestLogFile:
    def test_rotation_keeps_so_many_files(self, tmp_path: Path) -> None:
        path = tmp_path / "0.log"
        log = LogFile(path, max_bytes=20, max_files=3)
        for number in range(10):
            log.write(b"line %d, of 20 bytes\n" % number, 20)
        log.finish()
        assert [file.read_bytes()[5:6] for file in (*rotated(path), path)] == [b"7", b"8", b"9"]

    def test_one_that_comes_back_appends(self, tmp_path: Path) -> None:
        path = tmp_path / "0.log"
        for number in range(2):
            log = LogFile(path, max_bytes=1000, max_files=3)
            log.write(b"line %d\n" % number, 7)
            log.finish()
        assert path.read_bytes() == b"line 0\nline 1\n"

    def test_a_line_that_a_crash_cut_short_spoils_no_other(self, tmp_path: Path) -> None:
        path = tmp_path / "0.log"
        path.write_bytes(b"whole\nha")
        log = LogFile(path, max_bytes=1000, max_files=3)
        log.write(b"next\n", 4)
        log.finish()
        assert path.read_bytes() == b"whole\nha\nnext\n"

    def test_a_log_that_is_removed_is_begun_anew(self, tmp_path: Path) -> None:
        path = tmp_path / "0.log"
        log = LogFile(path, max_bytes=5, max_files=3)
        log.write(b"first\n", 5)
        path.unlink()
        log.write(b"second\n", 6)
        log.finish()
        assert path.read_bytes() == b"second\n"

    def test_what_cannot_be_written_is_counted_and_told(self, tmp_path: Path) -> None:
        path = tmp_path / "gone" / "0.log"
        log = LogFile(path, max_bytes=1000, max_files=3)
        log.write(b"...", 30)
        log.write(b"...", 12)
        path.parent.mkdir()
        log.write(b"after\n", 5)
        log.finish()
        note, after = path.read_bytes().splitlines()
        assert note.endswith(b" stderr F wasmlet: 42 bytes of output are lost here, the log could not be written")
        assert after == b"after"
