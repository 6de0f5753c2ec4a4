"""The spawner across the deaths of its provider, its log pump and itself."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from integration.runtime.harness import Node, Program, processes_of, until
from wasmlet.runtime.client import Spawner
from wasmlet.runtime.spec import ExitCause, SpawnError


async def test_a_provider_that_comes_back_finds_all(node: Node, c: Program) -> None:
    for id_ in ("runs", "ends", "was-over"):
        await node.start(node.spec(c, "sleep", id_=id_))
        await node.ready(id_)
    pid = node.spawner_pid()
    await node.spawner.kill("was-over", signal.SIGKILL)
    over = await node.exit("was-over")
    states = {state.id: state for state in await node.spawner.list()}
    await node.spawner.aclose()
    # An exit while nobody listens.
    os.kill(states["ends"].pid or 0, signal.SIGTERM)
    await until(lambda: (node.state / "exits" / "ends.json").exists())

    node.spawner = node.client()
    await node.spawner.connect()
    found = {state.id: state for state in await node.spawner.list()}
    assert node.spawner_pid() == pid
    assert found["runs"] == states["runs"]
    assert found["was-over"].exit == over
    ended = found["ends"].exit
    assert ended is not None
    assert (ended.code, ended.cause) == (143, ExitCause.SIGNALLED)
    assert ended.started_at == states["ends"].started_at
    await node.spawner.kill("runs", signal.SIGKILL)
    assert (await node.exit("runs")).code == 137


async def test_guests_outlive_a_provider_that_is_killed(node: Node, c: Program) -> None:
    provider = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROVIDER, node.state, c.artifact, node.root, node.log_path()),
        stdout=subprocess.PIPE,
    )
    assert provider.stdout is not None
    pid = int(await provider.stdout.readline())
    provider.kill()
    await provider.wait()
    await node.ready()
    assert [(state.id, state.pid) for state in await node.spawner.list()] == [("one", pid)]
    await node.spawner.kill("one", signal.SIGTERM)
    assert (await node.exit()).code == 143


_PROVIDER = """
import asyncio, sys
from pathlib import Path
from wasmlet.runtime.client import Spawner
from wasmlet.runtime.spec import LogSpec, ModuleKind, Preopen, ProcessSpec

async def main():
    state, artifact, root, log = map(Path, sys.argv[1:])
    spawner = Spawner(state_dir=state, on_exit=print)
    started = await spawner.start(
        ProcessSpec(id="one", artifact=artifact, kind=ModuleKind.CORE, argv=("guest", "sleep"), env=(),
                    preopens=(Preopen(host=root, guest="/"),), log=LogSpec(path=log)))
    print(started.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_signal_is_not_lost_on_a_guest_that_has_just_begun(node: Node, c: Program) -> None:
    for number in range(50):
        await node.start(node.spec(c, "sleep", id_=f"n{number}"))
        await node.spawner.kill(f"n{number}", signal.SIGTERM)
    for number in range(50):
        assert (await node.exit(f"n{number}")).code == 143


async def test_an_exit_is_known_until_it_is_forgotten(node: Node, c: Program) -> None:
    await node.run(node.spec(c, "exit", "3"))
    assert [state.exit and state.exit.code for state in await node.spawner.list()] == [3]
    await node.spawner.forget("one")
    assert await node.spawner.list() == []
    await node.spawner.forget("one")


async def test_of_what_is_forgotten_while_it_runs_no_record_is_kept(node: Node, c: Program) -> None:
    await node.start(node.spec(c, "sleep"))
    await node.spawner.forget("one")
    assert [state.id for state in await node.spawner.list()] == ["one"]
    await node.spawner.kill("one", signal.SIGKILL)
    assert (await node.exit()).code == 137
    assert await node.spawner.list() == []


async def test_when_the_spawner_is_killed_its_guests_die_and_are_told_as_lost(node: Node, c: Program) -> None:
    await node.run(node.spec(c, "exit", "0", id_="over"))
    pids = [(await node.start(node.spec(c, "sleep", id_=id_))).pid for id_ in ("a", "b")]
    await node.ready("a")
    await node.ready("b")
    old = node.spawner_pid()
    os.kill(old, signal.SIGKILL)
    for id_ in ("a", "b"):
        lost = await node.exit(id_)
        assert (lost.code, lost.cause) == (137, ExitCause.LOST)
        assert lost.started_at < lost.finished_at
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert (await node.run(node.spec(c, "exit", "5", id_="next"))).code == 5
    assert node.spawner_pid() != old
    # What had ended before is still known.
    assert {state.id for state in await node.spawner.list()} == {"over", "next"}


async def test_a_start_that_dies_with_the_spawner_is_an_error_and_no_exit(node: Node, c: Program) -> None:
    await node.spawner.connect()
    os.kill(node.spawner_pid(), signal.SIGSTOP)
    start = asyncio.create_task(node.start(node.spec(c, "sleep")))
    await asyncio.sleep(0)
    os.kill(node.spawner_pid(), signal.SIGKILL)
    with pytest.raises(SpawnError, match="the spawner has died"):
        await start
    assert node.exits == {}


async def test_two_spawners_never_work_on_one_directory(node: Node, c: Program) -> None:
    await node.start(node.spec(c, "sleep"))
    pid = node.spawner_pid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(b"\0wasmlet-test-%d" % os.getpid())
        listener.listen()
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _IMPATIENT, node.state, str(listener.fileno())),
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
        )
        _, message = await asyncio.wait_for(second.communicate(), 20)
    assert second.returncode == 1
    assert message.decode() == f"another spawner, process {pid}, works on {node.state}\n"
    await node.spawner.kill("one", signal.SIGKILL)
    assert (await node.exit()).code == 137


_IMPATIENT = "from wasmlet.runtime import spawner; spawner._LOCK_SECONDS = 0.2; spawner.main()"


async def test_a_hundred_starts_at_once(node: Node, c: Program) -> None:
    ids = [f"n{number}" for number in range(100)]
    ended = await asyncio.gather(*(node.run(node.spec(c, "exit", str(n), id_=id_)) for n, id_ in enumerate(ids)))
    assert [exit_.code for exit_ in ended] == list(range(100))


async def test_callers_of_the_first_connection_share_it(node: Node) -> None:
    await asyncio.gather(*(node.spawner.list() for _ in range(10)))
    assert len(processes_of(node.state)) == 2


async def test_one_that_gives_up_waiting_leaves_the_connection_to_others(node: Node) -> None:
    first = asyncio.create_task(node.spawner.list())
    second = asyncio.create_task(node.spawner.list())
    await asyncio.sleep(0)
    first.cancel()
    assert await second == []


async def test_nonsense_on_the_socket_does_no_harm(node: Node, c: Program) -> None:
    await node.start(node.spec(c, "sleep"))
    folder = os.open(node.state, os.O_PATH)
    for nonsense in (b"hello\n", b"[]\n", b'{"n":1}\n', b'{"n":1,"op":"start","spec":{}}\n', b'{"n":1,"op":"kill"}\n'):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(f"/proc/self/fd/{folder}/spawner.sock")
            client.sendall(nonsense)
            answer = client.recv(4096)
            assert answer == b"" or "error" in json.loads(answer)
    os.close(folder)
    await node.spawner.kill("one", signal.SIGKILL)
    assert (await node.exit()).code == 137


async def test_guests_have_nothing_of_the_spawner(node: Node, c: Program) -> None:
    started = await node.start(node.spec(c, "sleep"))
    await node.ready()
    process = Path(f"/proc/{started.pid}")
    open_files = {entry.name: str(entry.readlink()) for entry in (process / "fd").iterdir()}
    assert open_files["0"] == "/dev/null"
    assert not any("spawner" in path for path in open_files.values())
    others = [path for number, path in open_files.items() if int(number) > 2]
    # The root, what memories are mapped from, and the engine's own.
    allowed = (str(node.root), str(c.artifact), "anon_inode:", "/memfd:")
    assert [path for path in others if not path.startswith(allowed)] == []
    assert os.getsid(started.pid) == started.pid
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    assert status["Umask"] == "0022"
    handled = int(status["SigIgn"], 16) | int(status["SigCgt"], 16) | int(status["SigBlk"], 16)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        assert not handled & 1 << number - 1, f"signal {number} is not as a new process has it"
    await node.spawner.kill("one", signal.SIGKILL)


async def test_without_its_directory_and_guests_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state"
    spawner = Spawner(state_dir=state, on_exit=lambda _: None)
    await spawner.connect()
    shutil.rmtree(state)
    # It looks when it is asked, and else from time to time.
    await spawner.list()
    async with asyncio.timeout(10):
        while processes_of(state):
            await asyncio.sleep(0.01)
    await spawner.aclose()


async def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spawner = Spawner(state_dir=tmp_path / "file" / "state", on_exit=lambda _: None)
    with pytest.raises(SpawnError, match=r"cannot start the spawner: .*Not a directory"):
        await spawner.connect()
    await spawner.shutdown()


def test_the_spawner_is_small_and_imports_no_asyncio() -> None:
    modules = subprocess.run(
        [sys.executable, "-c", "import sys, wasmlet.runtime.guest, wasmlet.runtime.spawner; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert not {"asyncio", "grpc", "google.protobuf", "yaml", "structlog", "wasmlet.runtime.logs"} & set(modules)
