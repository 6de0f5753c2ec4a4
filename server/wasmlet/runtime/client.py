"""The provider's side of the spawner."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wasmlet.runtime.framing import Message, Unpacker, pack
from wasmlet.runtime.spec import LOST_CODE, Exit, ExitCause, ProcessSpec, ProcessState, SpawnError, Started, time_of

_SOCKET = "spawner.sock"
_CHUNK = 256 * 1024
# How long a new spawner may take to answer, in seconds.
_START_SECONDS = 30


class Spawner:
    """Starts processes by way of the spawner of a directory, which is started when it is not there.

    `on_exit` is called on the event loop for every process that ends, once its whole output is in its log. A process
    that is lost because the spawner died is told as an exit with cause LOST.
    """

    def __init__(self, *, state_dir: Path, on_exit: Callable[[Exit], None]) -> None:
        self._directory = state_dir
        self._on_exit = on_exit
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[Message]] = {}
        # Start times of the processes that run, by ID.
        self._running: dict[str, float] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def connect(self) -> None:
        """Connect to the spawner, or start one.

        Raises:
            SpawnError: it cannot be started.
        """
        await self.list()

    async def start(self, spec: ProcessSpec) -> Started:
        """Start a process. The same ID a second time finds the process that runs.

        Raises:
            SpawnError: there is no process, and there will be none.
        """
        self._running[spec.id] = 0.0
        try:
            answer = await self._call({"op": "start", "spec": spec.to_json()})
        except SpawnError:
            self._running.pop(spec.id, None)
            raise
        if "error" in answer:
            self._running.pop(spec.id, None)
            raise SpawnError(answer["error"])
        started = answer["started"]
        if spec.id in self._running:
            self._running[spec.id] = started["started_at"]
        return Started(id=spec.id, pid=started["pid"], started_at=time_of(started["started_at"]))

    async def kill(self, id_: str, signal: int) -> None:
        """Send a signal to a process, if it still runs."""
        await self._call({"op": "kill", "id": id_, "signal": int(signal)})

    async def list(self) -> list[ProcessState]:
        """Every process that runs, or has ended and is not forgotten."""
        states = []
        for raw in (await self._call({"op": "list"}))["processes"]:
            exit_ = Exit.from_json(raw["exit"]) if "exit" in raw else None
            if exit_ is None:
                self._running[raw["id"]] = raw["started_at"]
            states.append(ProcessState(id=raw["id"], pid=raw["pid"], started_at=time_of(raw["started_at"]), exit=exit_))
        return states

    async def forget(self, id_: str) -> None:
        """Drop the record of an exit."""
        await self._call({"op": "forget", "id": id_})

    async def aclose(self) -> None:
        """Leave the spawner and its processes to themselves."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        self._disconnect()

    async def shutdown(self) -> None:
        """Kill every process and end the spawner."""
        await self._call({"op": "shutdown"})
        if self._reading is not None:
            # It ends when the spawner has gone.
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)

    async def _call(self, request: Message) -> Message:
        await self._connected()
        assert self._writer is not None  # noqa: S101  for the type checker
        number = next(self._numbers)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        self._writer.write(pack({"n": number, **request}))
        return await answer

    async def _connected(self) -> None:
        while self._writer is None:
            if self._connecting is None:
                self._connecting = asyncio.create_task(self._open())
                self._connecting.add_done_callback(self._opened)
            await asyncio.shield(self._connecting)

    def _opened(self, _: asyncio.Task[None]) -> None:
        self._connecting = None

    async def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            connection = self._reach() or self._launch()
            reader, self._writer = await asyncio.open_unix_connection(sock=connection, limit=_CHUNK)
        except OSError as error:
            raise SpawnError(f"cannot start the spawner: {error}") from error
        self._reading = asyncio.create_task(self._read(reader))

    def _reach(self) -> socket.socket | None:
        """Connect to a spawner that lives."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _short_path(self._directory) as folder:
            try:
                connection.connect(f"{folder}/{_SOCKET}")
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                return None
        return connection

    def _launch(self) -> socket.socket:
        """Start a spawner in a session of its own. It inherits a socket that listens already, so no wait is needed."""
        (self._directory / _SOCKET).unlink(missing_ok=True)
        with (
            _short_path(self._directory) as folder,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
            (self._directory / "spawner.log").open("ab") as log,
        ):
            before = os.umask(0o177)
            try:
                listener.bind(f"{folder}/{_SOCKET}")
            finally:
                os.umask(before)
            listener.listen()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "wasmlet.runtime.spawner", self._directory, str(listener.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": os.defpath},
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(f"{folder}/{_SOCKET}")
        return connection

    async def _read(self, reader: asyncio.StreamReader) -> None:
        unpacker = Unpacker()
        try:
            while data := await reader.read(_CHUNK):
                for message in unpacker.feed(data):
                    self._received(message)
        except OSError:
            pass
        self._disconnect()
        self._lost()

    def _received(self, message: Message) -> None:
        if "exit" in message:
            self._running.pop(message["exit"]["id"], None)
            self._on_exit(Exit.from_json(message["exit"]))
            return
        answer = self._answers.pop(message["n"])
        if not answer.done():
            answer.set_result(message)

    def _disconnect(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(SpawnError("the spawner has died"))

    def _lost(self) -> None:
        """The spawner has died and its processes with it: tell their ends, as recorded or as lost."""
        running, self._running = self._running, {}
        for id_, started_at in running.items():
            self._on_exit(self._recorded(id_) or _lost_exit(id_, started_at))

    def _recorded(self, id_: str) -> Exit | None:
        try:
            raw: dict[str, Any] = json.loads((self._directory / "exits" / f"{id_}.json").read_bytes())
            return Exit.from_json(raw)
        except (OSError, ValueError, KeyError):
            return None


def _lost_exit(id_: str, started_at: float) -> Exit:
    return Exit(
        id=id_,
        code=LOST_CODE,
        cause=ExitCause.LOST,
        message="The process was lost when the node's spawner died",
        started_at=time_of(started_at),
        finished_at=time_of(time.time()),
    )


@contextmanager
def _short_path(directory: Path) -> Iterator[str]:
    """A path of the directory that fits into a socket's address, whose limit is 107 bytes."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
