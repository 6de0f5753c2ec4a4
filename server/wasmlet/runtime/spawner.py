"""The spawner: forks a process for each guest, and outlives the provider that asks for them.

A single thread around one epoll, so that forking is safe and quick. It compiles nothing, makes no WASI call, and
imports wasmtime only after the log pump has been forked, which stays small that way.

    DIRECTORY/spawner.sock  where the provider connects
    DIRECTORY/exits/        a file for each guest that has ended and that the provider has not forgotten
    DIRECTORY/reports/      what a guest left about its own end, until its exit is recorded
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from wasmlet.runtime import pump
from wasmlet.runtime.framing import Message, Unpacker, pack
from wasmlet.runtime.spec import START_FAILED_CODE, ExitCause, ModuleKind

if TYPE_CHECKING:
    from wasmlet.runtime.engine import Loaded, Loader

# Without guests, exits to tell or a provider, the spawner stays this long, in seconds.
_IDLE_SECONDS = 30
_CHUNK = 256 * 1024
# Modules that are kept mapped for the next start.
_LOADED_AT_MOST = 64


@dataclass(slots=True)
class _Guest:
    """A process, until its exit is recorded."""

    spec: Message
    pid: int
    started_at: float
    # The reading ends of its output, kept so that a new pump can go on where one died.
    pipes: tuple[int, int]
    stdin: int | None
    status: int | None = None
    finished_at: float = 0
    drained: bool = False


@dataclass(slots=True)
class _Client:
    connection: socket.socket
    unpacker: Unpacker = field(default_factory=Unpacker)
    unsent: bytes = b""


class SpawnerProcess:
    """The state of the spawner and its loop."""

    def __init__(self, directory: Path, listener: socket.socket) -> None:
        self._directory = directory
        self._exits = directory / "exits"
        self._reports = directory / "reports"
        self._listener = listener
        self._guests: dict[str, _Guest] = {}
        self._by_pid: dict[int, _Guest] = {}
        self._ended: dict[str, Message] = {}
        self._clients: dict[int, _Client] = {}
        self._loaded: OrderedDict[tuple[str, int, int], Loaded] = OrderedDict()
        self._stopping = False
        self._lock = -1
        self._signals = -1
        self._epoll = select.epoll()
        self._watches: dict[int, Callable[[], None]] = {}
        self._pump = self._start_pump()
        self._loader = self._make_loader()

    def _make_loader(self) -> Loader:
        # Not before the pump is forked: it has no use for wasmtime.
        from wasmlet.runtime.engine import Loader
        from wasmlet.runtime.guest import exit_process

        return Loader(exit_process)

    def run(self) -> None:
        """Serve until there is nothing to stay for."""
        self._lock_directory()
        self._recover()
        self._watch(self._listener.fileno(), self._accept)
        self._signals = _child_signals()
        self._watch(self._signals, self._reap)
        # What is there now is shared with every child, as long as no collection writes to it.
        gc.collect()
        gc.freeze()
        gc.disable()
        while not (self._stopping and not self._guests):
            idle = not self._clients and not self._guests and not self._ended
            ready = self._epoll.poll(_IDLE_SECONDS if idle else None)
            if idle and not ready:
                break
            for fd, events in ready:
                if events & select.EPOLLOUT and fd in self._clients:
                    self._flush(fd)
                if events & ~select.EPOLLOUT and fd in self._watches:
                    self._watches[fd]()
        (self._directory / "spawner.sock").unlink(missing_ok=True)

    # -- clients ------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        fd = connection.fileno()
        self._clients[fd] = _Client(connection)
        self._watch(fd, lambda: self._receive(fd))

    def _receive(self, fd: int) -> None:
        client = self._clients[fd]
        try:
            data = client.connection.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up(fd)
            return
        for request in client.unpacker.feed(data):
            answer = self._answer(request)
            self._send(fd, {"n": request["n"], **answer})

    def _answer(self, request: Message) -> Message:
        match request["op"]:
            case "start":
                return self._start(request["spec"])
            case "kill":
                self._kill(request["id"], request["signal"])
            case "forget":
                self._ended.pop(request["id"], None)
                self._exit_file(request["id"]).unlink(missing_ok=True)
            case "list":
                return {"processes": [*map(_running, self._guests.values()), *map(_over, self._ended.values())]}
            case "shutdown":
                self._stopping = True
                for guest in self._by_pid.values():
                    os.kill(guest.pid, signal.SIGKILL)
        return {}

    def _send(self, fd: int, message: Message) -> None:
        client = self._clients.get(fd)
        if client is None:
            return
        client.unsent += pack(message)
        self._flush(fd)

    def _flush(self, fd: int) -> None:
        client = self._clients[fd]
        try:
            sent = client.connection.send(client.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._hang_up(fd)
            return
        client.unsent = client.unsent[sent:]
        self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if client.unsent else 0))

    def _hang_up(self, fd: int) -> None:
        self._unwatch(fd)
        self._clients.pop(fd).connection.close()

    # -- guests -------------------------------------------------------------------------------------------------

    def _start(self, spec: Message) -> Message:
        known = self._guests.get(spec["id"])
        if known is not None:
            return {"started": _running(known)}
        if self._stopping:
            return {"error": "the spawner is stopping"}
        started_at = time.time()
        try:
            loaded = self._load(spec)
        except Exception as error:
            message = f"cannot start the module: {error}"
            self._record(spec["id"], ExitCause.START_FAILED, message, START_FAILED_CODE, started_at, time.time())
            return {"started": {"id": spec["id"], "pid": 0, "started_at": started_at}}
        try:
            guest = self._fork(spec, loaded, started_at)
        except OSError as error:
            return {"error": f"cannot start a process: {error.strerror}"}
        return {"started": _running(guest)}

    def _fork(self, spec: Message, loaded: Loaded, started_at: float) -> _Guest:
        from wasmlet.runtime import guest as guest_process

        fds: list[int] = []
        try:
            out_read, out_write = _pipe(fds)
            err_read, err_write = _pipe(fds)
            stdin_read, stdin_write = _pipe(fds) if spec["stdin"] else (_null(fds), None)
            parent = os.getpid()
            report = self._report(spec["id"])
            pid = os.fork()
            if pid == 0:
                guest_process.become(spec, loaded, (stdin_read, out_write, err_write), report, parent)
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        for fd in (out_write, err_write, stdin_read):
            os.close(fd)
        guest = _Guest(spec, pid, started_at, (out_read, err_read), stdin_write)
        self._guests[spec["id"]] = self._by_pid[pid] = guest
        self._hand_to_pump(guest)
        return guest

    def _load(self, spec: Message) -> Loaded:
        artifact = Path(spec["artifact"])
        stat = artifact.stat()
        key = (spec["artifact"], stat.st_ino, stat.st_mtime_ns)
        loaded = self._loaded.get(key)
        if loaded is None:
            loaded = self._loaded[key] = self._loader.load(artifact, ModuleKind(spec["kind"]))
            if len(self._loaded) > _LOADED_AT_MOST:
                self._loaded.popitem(last=False)
            gc.freeze()
        self._loaded.move_to_end(key)
        return loaded

    def _kill(self, id_: str, number: int) -> None:
        guest = self._guests.get(id_)
        if guest is not None and guest.status is None:
            os.kill(guest.pid, number)

    def _reap(self) -> None:
        _drain(self._signals)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            guest = self._by_pid.pop(pid, None)
            if guest is not None:
                guest.status, guest.finished_at = status, time.time()
                self._finish(guest)

    def _finish(self, guest: _Guest) -> None:
        """Record an exit when the process has ended and the last of its output is in the log."""
        if guest.status is None or not guest.drained:
            return
        for fd in (*guest.pipes, *([] if guest.stdin is None else [guest.stdin])):
            os.close(fd)
        id_ = guest.spec["id"]
        del self._guests[id_]
        code = os.waitstatus_to_exitcode(guest.status)
        cause, message = ExitCause.EXITED, ""
        if code < 0:
            code, cause = 128 - code, ExitCause.SIGNALLED
        report = self._report(id_)
        if report.exists():
            left = json.loads(report.read_bytes())
            cause, message = ExitCause(left["cause"]), left["message"]
        self._record(id_, cause, message, code, guest.started_at, guest.finished_at)
        report.unlink(missing_ok=True)

    def _record(
        self, id_: str, cause: ExitCause, message: str, code: int, started_at: float, finished_at: float
    ) -> None:
        exit_ = {
            "id": id_,
            "cause": cause,
            "message": message,
            "code": code,
            "started_at": started_at,
            "finished_at": finished_at,
        }
        self._ended[id_] = exit_
        file = self._exit_file(id_)
        try:
            temporary = file.with_suffix(".new")
            temporary.write_bytes(json.dumps(exit_).encode())
            temporary.replace(file)
        except OSError as error:
            # It is still told, and known as long as this process lives.
            print(f"cannot record the exit of {id_}: {error}", file=sys.stderr, flush=True)
        for fd in list(self._clients):
            self._send(fd, {"exit": exit_})

    # -- the log pump -------------------------------------------------------------------------------------------

    def _start_pump(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            ours.close()
            _be_the_pump(theirs)
        theirs.close()
        self._watch(ours.fileno(), self._pump_speaks)
        return ours

    def _hand_to_pump(self, guest: _Guest) -> None:
        try:
            pump.send_log(self._pump, {"id": guest.spec["id"], **guest.spec["log"]}, list(guest.pipes))
        except OSError:
            # The pump has died: its end is being noticed, and the next one gets all that are not drained.
            return

    def _pump_speaks(self) -> None:
        try:
            data = self._pump.recv(_CHUNK)
        except OSError:
            data = b""
        if not data:
            self._replace_pump()
            return
        guest = self._guests.get(json.loads(data)["drained"])
        if guest is not None:
            guest.drained = True
            self._finish(guest)

    def _replace_pump(self) -> None:
        print("the log pump has died, starting another", file=sys.stderr, flush=True)
        self._unwatch(self._pump.fileno())
        self._pump.close()
        self._pump = self._start_pump()
        for guest in self._guests.values():
            if not guest.drained:
                self._hand_to_pump(guest)

    # -- the rest -----------------------------------------------------------------------------------------------

    def _lock_directory(self) -> None:
        """Two spawners never work on one directory."""
        self._lock = os.open(self._directory / "spawner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _recover(self) -> None:
        self._exits.mkdir(exist_ok=True)
        self._reports.mkdir(exist_ok=True)
        for report in self._reports.iterdir():
            report.unlink()
        for file in self._exits.iterdir():
            try:
                exit_ = json.loads(file.read_bytes())
                self._ended[exit_["id"]] = exit_
            except (ValueError, KeyError, TypeError):
                file.unlink()

    def _exit_file(self, id_: str) -> Path:
        return self._exits / f"{id_}.json"

    def _report(self, id_: str) -> Path:
        return self._reports / id_

    def _watch(self, fd: int, callback: Callable[[], None]) -> None:
        self._watches[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        del self._watches[fd]
        self._epoll.unregister(fd)


def _running(guest: _Guest) -> Message:
    return {"id": guest.spec["id"], "pid": guest.pid, "started_at": guest.started_at}


def _over(exit_: Message) -> Message:
    return {"id": exit_["id"], "pid": 0, "started_at": exit_["started_at"], "exit": exit_}


def _be_the_pump(channel: socket.socket) -> NoReturn:
    # The lock, the clients and the guests' pipes are the spawner's.
    keep = channel.fileno()
    os.closerange(3, keep)
    os.closerange(keep + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    signal.set_wakeup_fd(-1)
    try:
        pump.run(channel)
    finally:
        os._exit(0)


def _child_signals() -> int:
    """A file descriptor that becomes readable when a child has ended."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        return


def _pipe(fds: list[int]) -> tuple[int, int]:
    ends = os.pipe2(os.O_CLOEXEC)
    fds.extend(ends)
    return ends


def _null(fds: list[int]) -> int:
    fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    fds.append(fd)
    return fd


def main() -> None:
    """`python -m wasmlet.runtime.spawner DIRECTORY LISTENER_FD`; the listening socket is inherited."""
    directory, listener_fd = Path(sys.argv[1]), int(sys.argv[2])
    os.umask(0o022)
    # A guest takes two to three descriptors here.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # The end of a service's terminal is no reason to end its containers.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    SpawnerProcess(directory, socket.socket(fileno=listener_fd)).run()


if __name__ == "__main__":
    main()
