"""The provider's side of the spawner."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wasmlet.runtime.framing import Message, Unpacker, pack
from wasmlet.runtime.spec import LOST_CODE, Exit, ExitCause, ProcessSpec, ProcessState, SpawnError, Started, time_of

_SOCKET = "spawner.sock"
_LOG = "spawner.log"
_ID = re.compile(r"[A-Za-z0-9._-]+")
_DIED = "the spawner has died"
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
        """Start a process. The same ID a second time finds the process that runs, or has run.

        A process that cannot become a guest (an import is missing, say) is an exit with cause START_FAILED; its PID is
        0 when it was not even forked.

        Raises:
            SpawnError: there is no process, there will be none, and no exit is told.
        """
        _check(spec)
        started = (await self._call({"op": "start", "spec": spec.to_json()}))["started"]
        return Started(id=spec.id, pid=started["pid"] or 0, started_at=time_of(started["started_at"]))

    async def kill(self, id_: str, signal: int) -> None:
        """Send a signal to a process, if it still runs.

        Raises:
            SpawnError: the spawner died meanwhile, and every process with it.
        """
        await self._call({"op": "kill", "id": id_, "signal": int(signal)})

    async def list(self) -> list[ProcessState]:
        """Every process that runs, or has ended and is not forgotten."""
        answer = await self._call({"op": "list"})
        return [
            ProcessState(
                id=raw["id"],
                pid=raw["pid"],
                started_at=time_of(raw["started_at"]),
                exit=Exit.from_json(raw["exit"]) if "exit" in raw else None,
            )
            for raw in answer["processes"]
        ]

    async def forget(self, id_: str) -> None:
        """Drop the record of an exit; of a process that still runs, no record will be kept."""
        await self._call({"op": "forget", "id": id_})

    async def aclose(self) -> None:
        """Leave the spawner and its processes to themselves."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        self._disconnect()

    async def shutdown(self) -> None:
        """Kill every process and end the spawner."""
        if self._writer is None and self._connecting is None and not self._is_there():
            return
        await self._call({"op": "shutdown"})
        if self._reading is not None:
            # It ends when the spawner has gone.
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._reap()

    async def _call(self, request: Message) -> Message:
        while self._writer is None or self._connecting is not None:
            if self._connecting is None:
                self._connecting = asyncio.create_task(self._open())
                # Nobody may be waiting for it any more when it fails.
                self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
            # Whoever gives up waiting does not end it for the others.
            await asyncio.shield(self._connecting)
        return await self._ask(request)

    async def _ask(self, request: Message) -> Message:
        if self._writer is None:
            raise SpawnError(_DIED)
        number = next(self._numbers)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        self._writer.write(pack({"n": number, **request}))
        reply = await answer
        if "error" in reply:
            raise SpawnError(reply["error"])
        return reply

    async def _open(self) -> None:
        """Connect, and see that the spawner answers.

        Raises:
            SpawnError
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            connection = self._reach()
            if connection is not None and await self._greet(connection):
                return
            # There is none, or it was about to go when the connection came.
            await self._reap()
            if not await self._greet(self._launch()):
                raise SpawnError(f"the spawner ended at once; see {self._directory / _LOG}")
        except TimeoutError as error:
            raise SpawnError(f"the spawner does not answer; see {self._directory / _LOG}") from error
        except OSError as error:
            raise SpawnError(f"cannot start the spawner: {error}") from error
        finally:
            self._connecting = None

    async def _greet(self, connection: socket.socket) -> bool:
        """Speak to a spawner; False if it goes away.

        Raises:
            TimeoutError
        """
        reader, self._writer = await asyncio.open_unix_connection(sock=connection)
        self._reading = asyncio.create_task(self._read(reader))
        try:
            async with asyncio.timeout(_START_SECONDS):
                # Also tells what runs, so that its loss can be told.
                await self._ask({"op": "list"})
        except SpawnError:
            return False
        except TimeoutError:
            self._reading.cancel()
            self._disconnect()
            raise
        return True

    async def _reap(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await asyncio.to_thread(process.wait)

    def _is_there(self) -> bool:
        connection = self._reach() if self._directory.is_dir() else None
        if connection is not None:
            connection.close()
        return connection is not None

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
            (self._directory / _LOG).open("ab") as log,
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
            # As when it ends in order.
            pass
        self._disconnect()
        self._lost()

    def _received(self, message: Message) -> None:
        # Here, in the order of the messages, and not by those who wait, who may be late.
        if "exit" in message:
            self._running.pop(message["exit"]["id"], None)
            self._tell(Exit.from_json(message["exit"]))
            return
        for process in message.get("processes", [message["started"]] if "started" in message else []):
            if "exit" not in process:
                self._running[process["id"]] = process["started_at"]
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
                answer.set_exception(SpawnError(_DIED))

    def _lost(self) -> None:
        """The spawner has died and its processes with it: tell their ends, as recorded or as lost."""
        running, self._running = self._running, {}
        for id_, started_at in running.items():
            self._tell(self._recorded(id_) or _lost_exit(id_, started_at))

    def _tell(self, exit_: Exit) -> None:
        # After the answer to the start, for whoever waits for that; and a defect there is none of this connection's.
        asyncio.get_running_loop().call_soon(self._on_exit, exit_)

    def _recorded(self, id_: str) -> Exit | None:
        try:
            raw: dict[str, Any] = json.loads((self._directory / "exits" / f"{id_}.json").read_bytes())
            return Exit.from_json(raw)
        except (OSError, ValueError, KeyError):
            return None


def _check(spec: ProcessSpec) -> None:
    """What no process can have, found before there is one.

    Raises:
        SpawnError
    """
    if not _ID.fullmatch(spec.id):
        raise SpawnError(f"the ID {spec.id!r} is not made of letters, digits, '.', '_' and '-'")
    for what, text in (
        *((f"argument {number}", word) for number, word in enumerate(spec.argv)),
        *((f"variable {name!r}", name + value) for name, value in spec.env),
    ):
        if "\0" in text:
            raise SpawnError(f"{what} contains a zero byte")
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise SpawnError(f"{what} is not valid UTF-8")


def _lost_exit(id_: str, started_at: float) -> Exit:
    return Exit(
        id=id_,
        code=LOST_CODE,
        cause=ExitCause.LOST,
        message="The process was lost when the node's spawner died",
        started_at=time_of(started_at),
        finished_at=time_of(time.time()),
    )


@contextlib.contextmanager
def _short_path(directory: Path) -> Iterator[str]:
    """A path of the directory that fits into a socket's address, whose limit is 107 bytes."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
