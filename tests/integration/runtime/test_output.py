"""From what guests write to what is read: nothing is lost but what is told as lost."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.runtime.harness import Node, Program, until
from wasmlet.runtime.crilog import rotated
from wasmlet.runtime.logs import LogOptions, read_log
from wasmlet.runtime.spec import ExitCause, LogSpec


async def read(path: Path, options: LogOptions | None = None, ended: asyncio.Event | None = None) -> bytes:
    pieces = [piece async for piece in read_log(path, options or LogOptions(), ended or asyncio.Event())]
    return b"".join(pieces)


async def test_the_log_is_complete_when_the_exit_is_told(node: Node, c: Program) -> None:
    for number in range(20):
        id_ = f"n{number}"
        await node.run(node.spec(c, "flood", "2000", "20", "x" * 20, id_=id_))
        assert len(node.output(id_)) == 2000


async def test_both_streams_and_partial_lines(node: Node, c: Program) -> None:
    await node.run(node.spec(c, "print", "one\ntwo", "to stderr"))
    assert sorted(node.lines()) == ["stderr P to stderr", "stdout F one", "stdout P two"]
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", node.raw_log().split(b" ")[0])
    assert node.log_path().stat().st_mode & 0o777 == 0o640


async def test_a_long_line_is_in_parts_in_the_file_and_whole_for_the_reader(node: Node, c: Program) -> None:
    line = "x" * 100_000
    await node.run(node.spec(c, "print", f"{line}\nshort\n"))
    assert [part[:9] for part in node.lines()] == ["stdout P "] * 6 + ["stdout F "] * 2
    assert max(map(len, node.output())) == 16 * 1024
    assert await read(node.log_path()) == f"{line}\nshort\n".encode()


async def test_a_flood_of_50_mb_is_rotated_and_read_back(node: Node, c: Program) -> None:
    log = LogSpec(path=node.log_path(), max_bytes=20_000_000, max_files=8)
    seen: list[bytes] = []
    ended = asyncio.Event()

    async def follow() -> None:
        async for piece in read_log(node.log_path(), LogOptions(follow=True), ended):
            seen.append(piece)

    follower = asyncio.create_task(follow())
    await node.run(node.spec(c, "flood", "100000", "500", "y" * 500, log=log))
    ended.set()
    await follower
    files = [*rotated(node.log_path()), node.log_path()]
    assert len(files) == 3
    assert max(path.stat().st_size for path in files) < 20_200_000
    text = await read(node.log_path())
    assert len(text) == 100_000 * 510
    assert [int(line[:8]) for line in text.splitlines()] == list(range(100_000))
    assert b"".join(seen) == text


async def test_only_so_many_files_are_kept(node: Node, c: Program) -> None:
    log = LogSpec(path=node.log_path(), max_bytes=100_000, max_files=3)
    await node.run(node.spec(c, "flood", "20000", "100", "y" * 100, log=log))
    files = sorted(node.log_path().parent.iterdir())
    assert len(files) == 3
    assert all(re.fullmatch(r"one\.log(\.\d{8}-\d{6}\.\d{9})?", path.name) for path in files)
    assert (await read(node.log_path())).endswith(b"00019999 " + b"y" * 100 + b"\n")


async def test_a_follower_sees_each_line_once_whenever_it_begins(node: Node, c: Program) -> None:
    log = LogSpec(path=node.log_path(), max_bytes=5_000, max_files=100)
    await node.start(node.spec(c, "tick", log=log))
    ended = asyncio.Event()
    followers = []
    for _ in range(10):
        options = LogOptions(follow=True, tail=3)
        followers.append(asyncio.create_task(read(node.log_path(), options, ended)))
        size = len(list(node.log_path().parent.iterdir()))
        await until(lambda size=size: len(list(node.log_path().parent.iterdir())) > size)  # type: ignore[misc]
    await node.spawner.kill("one", signal.SIGKILL)
    await node.exit()
    ended.set()
    for seen in await asyncio.gather(*followers):
        numbers = [int(line.split()[1]) for line in seen.splitlines()]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


async def test_a_pump_that_dies_is_replaced_and_the_guest_goes_on(node: Node, c: Program) -> None:
    started = await node.start(node.spec(c, "tick"))
    await node.ready()
    for _ in range(3):
        old = node.pump_pid()
        os.kill(old, signal.SIGKILL)
        await until(lambda old=old: node.pump_pids() not in ([], [old]))  # type: ignore[misc]
        size = len(node.raw_log())
        await until(lambda size=size: len(node.raw_log()) > size)  # type: ignore[misc]
    assert Path(f"/proc/{started.pid}").exists()
    await node.spawner.kill("one", signal.SIGKILL)
    ended = await node.exit()
    assert ended.cause is ExitCause.SIGNALLED
    numbers = [int(line.split()[1]) for line in node.output()]
    assert numbers == sorted(set(numbers))
    # What the dead pumps had read but not written: a chunk each, at most.
    assert len(range(numbers[-1] + 1)) - len(numbers) < 3 * 65536 / len("tick 0\n")
    assert "the log pump has died" in node.diagnostics()


async def test_an_exit_is_told_though_its_log_cannot_be_written(node: Node, c: Program) -> None:
    await node.spawner.connect()
    pump = node.pump_pid()
    os.kill(pump, signal.SIGSTOP)
    try:
        assert (await node.run(node.spec(c, "exit", "4"))).code == 4
    finally:
        os.kill(pump, signal.SIGCONT)
    assert "its log could not be written in time" in node.diagnostics()


async def test_a_stopped_pump_delays_no_start(node: Node, c: Program) -> None:
    await node.spawner.connect()
    pump = node.pump_pid()
    os.kill(pump, signal.SIGSTOP)
    try:
        ids = [f"n{number}" for number in range(500)]
        async with asyncio.timeout(15):
            for id_ in ids:
                await node.start(node.spec(c, "exit", "0", id_=id_))
    finally:
        os.kill(pump, signal.SIGCONT)
    for id_ in ids:
        assert (await node.exit(id_)).code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.getuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_full_disk_stops_no_guest_and_the_loss_is_told(node: Node, c: Program, small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 200_000)
    log = small_disk / "one.log"
    await node.start(node.spec(c, "tick", log=LogSpec(path=log)))
    await until(lambda: log.exists() and log.stat().st_size > 20_000)
    filler.write_bytes(b"x" * (small_disk_free(small_disk) + 200_000))
    # The guest goes on writing, into nothing.
    await until(lambda: small_disk_free(small_disk) == 0)
    full_at = log.stat().st_size
    await asyncio.sleep(0.2)
    filler.unlink()
    await until(lambda: log.stat().st_size > full_at + 10_000)
    await node.spawner.kill("one", signal.SIGKILL)
    await node.exit()
    text = (await read(log)).decode()
    lost = [int(number) for number in re.findall(r"wasmlet: (\d+) bytes of output are lost here", text)]
    numbers = [int(number) for number in re.findall(r"^tick (\d+)$", text, re.MULTILINE)]
    assert lost
    missing = set(range(numbers[-1] + 1)) - set(numbers)
    assert sum(lost) == sum(len(f"tick {number}\n") for number in missing)


def small_disk_free(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_bsize


async def test_a_disk_that_is_full_from_the_start(node: Node, c: Program, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * small_disk_free(small_disk))
    log = LogSpec(path=small_disk / "one.log")
    assert (await node.run(node.spec(c, "flood", "10000", "100", "z" * 100, log=log))).code == 0
    assert (await read(log.path)) == b""


async def test_a_log_in_a_folder_that_is_gone(node: Node, c: Program, tmp_path: Path) -> None:
    log = LogSpec(path=tmp_path / "gone" / "one.log")
    assert (await node.run(node.spec(c, "print", "lost", log=log))).code == 0
    assert await read(log.path) == b""
    assert await read(log.path, LogOptions(follow=True)) == b""
