"""Reading logs back, against a plain model of what `kubectl logs` shows."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wasmlet.runtime.logs import LogOptions, Stream, read_log

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NEVER = asyncio.Event()


def time_of(number: int) -> bytes:
    return (START + timedelta(seconds=number)).strftime("%Y-%m-%dT%H:%M:%S.%f000Z").encode()


def line(number: int, content: bytes, stream: bytes = b"stdout", tag: bytes = b"F") -> bytes:
    return b" ".join((time_of(number), stream, tag, content)) + b"\n"


def write(path: Path, files: Iterable[bytes]) -> None:
    """Lay out a log: all but the last are rotated files."""
    *old, newest = files
    for number, content in enumerate(old):
        path.with_name(f"{path.name}.20260102-0304{number:02d}.000000000").write_bytes(content)
    path.write_bytes(newest)


async def read(path: Path, options: LogOptions | None = None, ended: asyncio.Event = NEVER) -> bytes:
    return b"".join([piece async for piece in read_log(path, options or LogOptions(), ended)])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "0.log"
    write(path, [b"".join(line(n, b"%d" % n) for n in numbers) for numbers in (range(3), range(3, 6), range(6, 9))])
    return path


def numbers(*which: int) -> bytes:
    return b"".join(b"%d\n" % number for number in which)


async def test_all_of_it_with_its_rotated_files(log: Path) -> None:
    assert await read(log) == numbers(*range(9))


@pytest.mark.parametrize("tail", [0, 1, 2, 3, 4, 7, 9, 100])
@pytest.mark.parametrize("follow", [False, True])
async def test_the_last_lines(log: Path, tail: int, follow: bool) -> None:
    ended = asyncio.Event()
    ended.set()
    expected = numbers(*range(max(9 - tail, 0), 9))
    assert await read(log, LogOptions(tail=tail, follow=follow), ended) == expected


@pytest.mark.parametrize(
    ("since", "first"),
    [
        (START, 0),
        (START + timedelta(seconds=4), 4),
        (START + timedelta(seconds=4, microseconds=1), 5),
        ((START + timedelta(seconds=7)).astimezone(timezone(timedelta(hours=5))), 7),
        (START + timedelta(days=1), 9),
        (datetime(1, 1, 1, tzinfo=UTC), 0),
        (datetime(999, 1, 1, tzinfo=UTC), 0),
    ],
)
async def test_since(log: Path, since: datetime, first: int) -> None:
    assert await read(log, LogOptions(since=since)) == numbers(*range(first, 9))


async def test_timestamps(log: Path) -> None:
    assert await read(log, LogOptions(tail=1, timestamps=True)) == time_of(8) + b" 8\n"


async def test_a_limit_cuts_within_a_line(log: Path) -> None:
    assert await read(log, LogOptions(limit_bytes=5)) == b"0\n1\n2"


async def test_parts_are_joined_and_have_one_timestamp(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    parts = [line(0, b"a", tag=b"P"), line(1, b"b", tag=b"P"), line(2, b"c"), line(3, b"end", tag=b"P")]
    write(log, [b"".join(parts)])
    assert await read(log) == b"abc\nend"
    assert await read(log, LogOptions(timestamps=True)) == time_of(0) + b" abc\n" + time_of(3) + b" end"
    assert await read(log, LogOptions(tail=1)) == b"end"
    assert await read(log, LogOptions(tail=2)) == b"abc\nend"


async def test_one_stream_of_two(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    write(log, [line(0, b"out") + line(1, b"err", b"stderr")])
    assert await read(log, LogOptions(stream=Stream.STDOUT)) == b"out\n"
    assert await read(log, LogOptions(stream=Stream.STDERR)) == b"err\n"


async def test_what_is_no_line_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    write(log, [b"garbage\n" + line(0, b"a") + b"\n\xff\xfe\n" + line(1, b"b") + b"2026-01-02T03:04:05.0000"])
    assert await read(log) == b"a\nb\n"
    assert await read(log, LogOptions(since=START, timestamps=True)) == time_of(0) + b" a\n" + time_of(1) + b" b\n"


async def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    assert await read(tmp_path / "0.log") == b""
    assert await read(tmp_path / "0.log", LogOptions(tail=5)) == b""
    assert await read(tmp_path / "gone" / "0.log", LogOptions(tail=5)) == b""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.binary(max_size=20), st.sampled_from(b"FP")), max_size=8), min_size=1, max_size=4),
    st.one_of(st.none(), st.integers(min_value=0, max_value=20)),
    st.one_of(st.none(), st.integers(min_value=1, max_value=200)),
)
def test_any_log_reads_as_the_model_says(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[list[tuple[bytes, int]]],
    tail: int | None,
    limit: int | None,
) -> None:
    log = tmp_path_factory.mktemp("log") / "0.log"
    clean = [[(content.replace(b"\n", b" "), tag) for content, tag in file] for file in files]
    write(log, [b"".join(line(0, content, tag=bytes([tag])) for content, tag in file) for file in clean])
    text = b"".join(content + (b"\n" if tag == ord("F") else b"") for file in clean for content, tag in file)
    # A part that is the last of the log counts as a line, and may be empty.
    flat = [part for file in clean for part in file]
    lines = text.splitlines(keepends=True) if b"\r" not in text else _split(text)
    if flat and flat[-1][1] == ord("P") and text[-1:] in (b"\n", b""):
        lines.append(b"")
    expected = b"".join(lines if tail is None else lines[max(len(lines) - tail, 0) :])
    assert asyncio.run(read(log, LogOptions(tail=tail, limit_bytes=limit))) == expected[:limit]


def _split(text: bytes) -> list[bytes]:
    *whole, rest = text.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


class TestFollowing:
    async def test_what_is_appended_and_rotated_is_seen_in_order(self, log: Path) -> None:
        ended = asyncio.Event()
        seen = bytearray()

        async def follow() -> None:
            async for piece in read_log(log, LogOptions(follow=True, tail=1), ended):
                seen.extend(piece)

        follower = asyncio.create_task(follow())
        await self._until(seen, b"8\n")
        with log.open("ab") as file:
            file.write(line(9, b"9"))
        await self._until(seen, b"8\n9\n")
        # Twice, before the reader looks again.
        for number in (10, 11):
            log.rename(log.with_name(f"0.log.20270102-0304{number}.000000000"))
            log.write_bytes(line(number, b"%d" % number))
        await self._until(seen, b"8\n9\n10\n11\n")
        # A line is told when it is whole.
        with log.open("ab") as file:
            file.write(line(12, b"12")[:-3])
            file.flush()
            await asyncio.sleep(0)
            file.write(line(12, b"12")[-3:])
        ended.set()
        await follower
        assert bytes(seen) == numbers(8, 9, 10, 11, 12)

    async def test_a_log_that_begins_later(self, tmp_path: Path) -> None:
        log, ended, seen = tmp_path / "0.log", asyncio.Event(), bytearray()

        async def follow() -> None:
            async for piece in read_log(log, LogOptions(follow=True), ended):
                seen.extend(piece)

        follower = asyncio.create_task(follow())
        await asyncio.sleep(0.01)
        log.write_bytes(line(1, b"1"))
        await self._until(seen, b"1\n")
        ended.set()
        await follower

    async def test_a_reader_that_hangs_up_leaves_nothing_open(self, log: Path) -> None:
        before = sorted(Path("/proc/self/fd").iterdir())
        pieces = read_log(log, LogOptions(follow=True), NEVER)
        await anext(pieces)
        await pieces.aclose()
        assert sorted(Path("/proc/self/fd").iterdir()) == before

    @staticmethod
    async def _until(seen: bytearray, expected: bytes) -> None:
        async with asyncio.timeout(5):
            while bytes(seen) != expected:
                await asyncio.sleep(0.001)


async def test_the_end_of_a_long_log_costs_little(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    write(log, [b"".join(line(0, b"%d " % number + b"x" * 100) for number in range(70_000))])
    assert log.stat().st_size > 10_000_000
    tracemalloc.start()
    text = await read(log, LogOptions(tail=10))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [int(row.split()[0]) for row in text.splitlines()] == list(range(69_990, 70_000))
    assert peak < 1_000_000


async def test_history_comes_in_large_pieces(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    write(log, [b"".join(line(0, b"x" * 50) for _ in range(20_000))])
    pieces = [piece async for piece in read_log(log, LogOptions(), NEVER)]
    assert len(pieces) < 40
    assert max(map(len, pieces)) <= 64 * 1024
