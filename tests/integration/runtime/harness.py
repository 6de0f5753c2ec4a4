"""A spawner with real guests, for tests of the runtime."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from wasmlet.runtime.client import Spawner
from wasmlet.runtime.spec import Exit, LogSpec, ModuleKind, Preopen, ProcessSpec, Started

DEADLINE_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Program:
    artifact: Path
    kind: ModuleKind


def compiled(module: Path) -> Program:
    artifact = module.with_suffix(".cwasm")
    command = [sys.executable, "-m", "wasmlet.runtime.compile", str(module), str(artifact)]
    facts = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return Program(artifact, ModuleKind(facts["kind"]))


@dataclass(slots=True)
class Node:
    """A spawner with the processes of one test."""

    folder: Path
    exits: dict[str, Exit] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    spawner: Spawner = field(init=False)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True)
        (self.folder / "logs").mkdir()
        self.spawner = self.client()

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def client(self) -> Spawner:
        return Spawner(state_dir=self.state, on_exit=self._exited)

    def _exited(self, exit_: Exit) -> None:
        assert exit_.id not in self.exits, "an exit is told once"
        self.exits[exit_.id] = exit_
        self._changed.set()

    def spec(
        self,
        program: Program,
        *argv: str,
        id_: str = "one",
        env: tuple[tuple[str, str], ...] = (),
        preopens: tuple[Preopen, ...] | None = None,
        log: LogSpec | None = None,
        working_dir: str = "/",
        stdin: bool = False,
    ) -> ProcessSpec:
        return ProcessSpec(
            id=id_,
            artifact=program.artifact,
            kind=program.kind,
            argv=("guest", *argv),
            env=env,
            preopens=(Preopen(host=self.root, guest="/"),) if preopens is None else preopens,
            log=log or LogSpec(path=self.log_path(id_)),
            working_dir=working_dir,
            stdin=stdin,
        )

    async def start(self, spec: ProcessSpec) -> Started:
        return await self.spawner.start(spec)

    async def run(self, spec: ProcessSpec) -> Exit:
        await self.start(spec)
        return await self.exit(spec.id)

    async def exit(self, id_: str = "one") -> Exit:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while id_ not in self.exits:
                self._changed.clear()
                await self._changed.wait()
        return self.exits[id_]

    async def ready(self, id_: str = "one") -> None:
        """Wait for the first output of a process."""
        await until(lambda: self.raw_log(id_) != b"")

    def log_path(self, id_: str = "one") -> Path:
        return self.folder / "logs" / f"{id_}.log"

    def raw_log(self, id_: str = "one") -> bytes:
        path = self.log_path(id_)
        return path.read_bytes() if path.exists() else b""

    def lines(self, id_: str = "one") -> list[str]:
        """The output, as `stream tag content`."""
        return [line.split(" ", 1)[1] for line in self.raw_log(id_).decode().splitlines()]

    def output(self, id_: str = "one") -> list[str]:
        return [line.split(" ", 2)[2] for line in self.lines(id_)]

    def spawner_pid(self) -> int:
        return int((self.state / "spawner.lock").read_text())

    def pump_pid(self) -> int:
        (pid,) = self.pump_pids()
        return pid

    def pump_pids(self) -> list[int]:
        """The log pump is the child that stays in the spawner's session."""
        session = os.getsid(self.spawner_pid())
        return [pid for pid in self.children() if _session(pid) == session]

    def children(self) -> list[int]:
        task = Path(f"/proc/{self.spawner_pid()}/task/{self.spawner_pid()}/children")
        return [int(pid) for pid in task.read_text().split()]

    def diagnostics(self) -> str:
        return (self.state / "spawner.log").read_text()


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


async def until(condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def until_async(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await condition():
            await asyncio.sleep(0.005)


def open_fds(pid: int) -> set[str]:
    """What a process has open; sockets and pipes by their number."""
    return {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()}


def processes_of(folder: Path) -> list[int]:
    """Spawner, pump and guests of a folder: all have the command line of the spawner."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.fsencode(folder) in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
