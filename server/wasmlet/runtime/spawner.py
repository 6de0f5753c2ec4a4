"""The spawner: forks a process for each guest, and outlives the provider that asks for them.

A single thread around one epoll, so that forking is safe and quick. It compiles nothing, makes no WASI call, and
imports wasmtime only after the log pump has been forked, which stays small that way. It stays until it is told to go,
or has no guest and its directory is gone: every guest dies with it.

    DIRECTORY/spawner.sock  where the provider connects
    DIRECTORY/spawner.lock  held by the one spawner of the directory; its process ID
    DIRECTORY/spawner.log   what went wrong here
    DIRECTORY/exits/        a file for each guest that has ended and that the provider has not forgotten
    DIRECTORY/reports/      what a guest left about its own end, until its exit is recorded
"""

from __future__ import annotations

import errno
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
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from wasmlet.runtime import pump
from wasmlet.runtime.framing import Message, Unpacker, pack
from wasmlet.runtime.spec import START_FAILED_CODE, ExitCause, ModuleKind

if TYPE_CHECKING:
    from wasmlet.runtime.engine import Loaded

# Without guests, the spawner looks so often, in seconds, whether its directory is still there.
_IDLE_SECONDS = 30
# How long an exit waits for the last of the output to be in the log, at most.
_DRAIN_SECONDS = 5
# A pump that keeps dying is started again this often.
_PUMP_SECONDS = 1
# How long the spawner before may take to go.
_LOCK_SECONDS = 10
_CHUNK = 256 * 1024
# Modules that are kept mapped for the next start.
_LOADED_AT_MOST = 64


@dataclass(slots=True)
class _Guest:
    """A process, until its exit is recorded."""

    id: str
    log: Message
    pid: int
    started_at: float
    # The reading ends of its output, kept so that a new pump can go on where one died.
    pipes: tuple[int, int]
    stdin: int | None
    status: int | None = None
    finished_at: float = 0
    drained: bool = False
    # The exit is told, but not kept.
    forgotten: bool = False


@dataclass(slots=True)
class _Client:
    connection: socket.socket
    unpacker: Unpacker = field(default_factory=Unpacker)
    unsent: bytearray = field(default_factory=bytearray)


class SpawnerProcess:
    """The state of the spawner and its loop."""

    def __init__(self, directory: Path, listener: socket.socket) -> None:
        self._directory = directory
        self._identity = _identity(directory)
        self._exits = directory / "exits"
        self._reports = directory / "reports"
        self._listener = listener
        self._guests: dict[str, _Guest] = {}
        self._by_pid: dict[int, _Guest] = {}
        # Guests that have ended, by when to wait for their output no longer.
        self._draining: dict[str, float] = {}
        self._ended: dict[str, Message] = {}
        # Exits that no client has been told yet.
        self._untold: list[Message] = []
        self._clients: dict[int, _Client] = {}
        self._loaded: OrderedDict[tuple[str, int, int], Loaded] = OrderedDict()
        self._stopping = False
        self._epoll = select.epoll()
        self._watches: dict[int, Callable[[], None]] = {}
        self._pump: socket.socket | None = None
        self._pump_started_at = 0.0
        self._for_pump: deque[_Guest] = deque()
        self._start_pump()
        # Not before the pump is forked: it has no use for wasmtime.
        from wasmlet.runtime import engine, guest

        self._engine, self._guest = engine, guest
        self._loader = engine.Loader(guest.exit_process)
        self._signals = _child_signals()

    def run(self) -> None:
        """Serve until there is nothing to stay for."""
        self._recover()
        self._watch(self._listener.fileno(), self._accept)
        self._watch(self._signals, self._reap)
        # What is there now is shared with every child, as long as no collection writes to it.
        gc.collect()
        gc.freeze()
        gc.disable()
        while not (self._stopping and not self._guests):
            for fd, events in self._epoll.poll(self._patience()):
                _survive(self._dispatch, fd, events)
            _survive(self._tick)
            if not self._guests and _identity(self._directory) != self._identity:
                break
        for fd in list(self._clients):
            self._hang_up(fd)

    def _dispatch(self, fd: int, events: int) -> None:
        if events & select.EPOLLOUT:
            if fd in self._clients:
                self._flush(fd)
            elif self._pump is not None and fd == self._pump.fileno():
                self._feed_pump()
        if events & ~select.EPOLLOUT and fd in self._watches:
            self._watches[fd]()

    def _patience(self) -> float | None:
        """Seconds until there is something to do without being asked."""
        if self._pump is None:
            return _PUMP_SECONDS
        if self._draining:
            return max(min(self._draining.values()) - time.monotonic(), 0)
        return None if self._guests else _IDLE_SECONDS

    def _tick(self) -> None:
        if self._pump is None and time.monotonic() - self._pump_started_at >= _PUMP_SECONDS:
            self._start_pump()
        now = time.monotonic()
        for id_ in [id_ for id_, deadline in self._draining.items() if deadline <= now]:
            print(f"{id_} has ended, but its log could not be written in time", file=sys.stderr, flush=True)
            guest = self._guests[id_]
            guest.drained = True
            self._finish(guest)
        self._tell()

    def _tell(self) -> None:
        # After all answers, so that nobody hears of an exit before the start.
        untold, self._untold = self._untold, []
        for exit_ in untold:
            for fd in list(self._clients):
                self._send(fd, {"exit": exit_})

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
        try:
            requests = [(request["n"], request) for request in client.unpacker.feed(data)]
        except (ValueError, KeyError, TypeError):
            print("a client that speaks another language", file=sys.stderr, flush=True)
            self._hang_up(fd)
            return
        for number, request in requests:
            self._send(fd, {"n": number, **self._answer(request)})

    def _answer(self, request: Message) -> Message:
        try:
            return self._obey(request)
        except Exception as error:
            traceback.print_exc()
            return {"error": f"the spawner failed: {error!r}"}

    def _obey(self, request: Message) -> Message:
        match request["op"]:
            case "start":
                return self._start(request["spec"])
            case "kill":
                self._kill(request["id"], request["signal"])
            case "forget":
                self._forget(request["id"])
            case "list":
                return {"processes": [*map(_running, self._guests.values()), *map(_over, self._ended.values())]}
            case "shutdown":
                self._shutdown()
        return {}

    def _shutdown(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        # Who comes from now on finds nobody, and starts the next spawner.
        self._unwatch(self._listener.fileno())
        self._listener.close()
        (self._directory / "spawner.sock").unlink(missing_ok=True)
        for guest in self._by_pid.values():
            os.kill(guest.pid, signal.SIGKILL)

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
        del client.unsent[:sent]
        self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if client.unsent else 0))

    def _hang_up(self, fd: int) -> None:
        self._unwatch(fd)
        self._clients.pop(fd).connection.close()

    # -- guests -------------------------------------------------------------------------------------------------

    def _start(self, spec: Message) -> Message:
        id_ = spec["id"]
        if id_ in self._guests:
            return {"started": _running(self._guests[id_])}
        if id_ in self._ended:
            return {"started": _over(self._ended[id_])}
        if self._stopping:
            return {"error": "the spawner is stopping"}
        started_at = time.time()
        try:
            loaded = self._load(spec)
        except Exception as error:
            reason = self._engine.sentence(error)
            message = reason if isinstance(error, self._engine.StartError) else f"cannot load the module: {reason}"
            self._record(id_, ExitCause.START_FAILED, message, START_FAILED_CODE, started_at, time.time())
            return {"started": _over(self._ended[id_])}
        try:
            guest = self._fork(spec, loaded, started_at)
        except OSError as error:
            return {"error": f"cannot start a process: {error.strerror}"}
        return {"started": _running(guest)}

    def _fork(self, spec: Message, loaded: Loaded, started_at: float) -> _Guest:
        fds: list[int] = []
        try:
            out_read, out_write = _pipe(fds)
            err_read, err_write = _pipe(fds)
            stdin_read, stdin_write = _pipe(fds) if spec["stdin"] else (_null(fds), None)
            parent = os.getpid()
            report = str(self._report(spec["id"]))
            pid = os.fork()
            if pid == 0:
                try:
                    self._guest.become(spec, loaded, (stdin_read, out_write, err_write), report, parent)
                finally:
                    # Whatever happens, only one process is the spawner.
                    os._exit(START_FAILED_CODE)
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        for fd in (out_write, err_write, stdin_read):
            os.close(fd)
        guest = _Guest(spec["id"], spec["log"], pid, started_at, (out_read, err_read), stdin_write)
        self._guests[guest.id] = self._by_pid[pid] = guest
        self._for_pump.append(guest)
        self._feed_pump()
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

    def _forget(self, id_: str) -> None:
        guest = self._guests.get(id_)
        if guest is not None:
            guest.forgotten = True
            return
        self._ended.pop(id_, None)
        self._exit_file(id_).unlink(missing_ok=True)

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
        if guest.status is None:
            return
        id_ = guest.id
        if not guest.drained:
            self._draining[id_] = time.monotonic() + _DRAIN_SECONDS
            return
        self._draining.pop(id_, None)
        del self._guests[id_]
        for fd in (*guest.pipes, *([] if guest.stdin is None else [guest.stdin])):
            os.close(fd)
        code = os.waitstatus_to_exitcode(guest.status)
        cause, message = ExitCause.EXITED, ""
        if code < 0:
            code, cause = 128 - code, ExitCause.SIGNALLED
        else:
            cause, message = self._reported(id_)
        self._record(id_, cause, message, code, guest.started_at, guest.finished_at)
        if guest.forgotten:
            self._forget(id_)

    def _reported(self, id_: str) -> tuple[ExitCause, str]:
        """What the process left about its end, if it was no ordinary one."""
        report = self._report(id_)
        try:
            left = json.loads(report.read_bytes())
            report.unlink()
            return ExitCause(left["cause"]), left["message"]
        except FileNotFoundError:
            return ExitCause.EXITED, ""
        except (OSError, ValueError, KeyError, TypeError):
            return ExitCause.EXITED, "what the process reported of its end could not be read"

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
        self._untold.append(exit_)

    # -- the log pump -------------------------------------------------------------------------------------------

    def _start_pump(self) -> None:
        self._pump_started_at = time.monotonic()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = os.fork()
            except OSError as error:
                print(f"cannot start a log pump: {error.strerror}", file=sys.stderr, flush=True)
                ours.close()
                return
            if pid == 0:
                _be_the_pump(theirs)
        # A pump that is slow must not delay a fork.
        ours.setblocking(False)
        self._pump = ours
        self._watch(ours.fileno(), self._pump_speaks)
        self._for_pump = deque(guest for guest in self._guests.values() if not guest.drained)
        self._feed_pump()

    def _feed_pump(self) -> None:
        """Hand over the pipes that wait, as many as the pump takes now."""
        if self._pump is None:
            return
        try:
            while self._for_pump:
                guest = self._for_pump[0]
                if not guest.drained:
                    pump.send_log(self._pump, {"id": guest.id, **guest.log}, list(guest.pipes))
                self._for_pump.popleft()
        except OSError as error:
            # A pump that has died is noticed by its silence, and the next one gets all that are not drained.
            if error.errno not in (errno.EAGAIN, errno.ETOOMANYREFS, errno.EPIPE, errno.ECONNRESET):
                traceback.print_exc()
        self._epoll.modify(self._pump.fileno(), select.EPOLLIN | (select.EPOLLOUT if self._for_pump else 0))

    def _pump_speaks(self) -> None:
        if self._pump is None:
            return
        try:
            data = self._pump.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            print("the log pump has died, starting another", file=sys.stderr, flush=True)
            self._unwatch(self._pump.fileno())
            self._pump.close()
            self._pump = None
            return
        guest = self._guests.get(json.loads(data)["drained"])
        if guest is not None:
            guest.drained = True
            self._finish(guest)

    # -- the rest -----------------------------------------------------------------------------------------------

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
                print(f"{file.name} is no record of an exit", file=sys.stderr, flush=True)
                file.unlink()

    def _exit_file(self, id_: str) -> Path:
        return self._exits / f"{id_}.json"

    def _report(self, id_: str) -> Path:
        return self._reports / f"{id_}.json"

    def _watch(self, fd: int, callback: Callable[[], None]) -> None:
        self._watches[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        del self._watches[fd]
        self._epoll.unregister(fd)


def _running(guest: _Guest) -> Message:
    return {"id": guest.id, "pid": guest.pid, "started_at": guest.started_at}


def _over(exit_: Message) -> Message:
    return {"id": exit_["id"], "pid": None, "started_at": exit_["started_at"], "exit": exit_}


def _survive(step: Callable[..., None], *arguments: int) -> None:
    """A defect in one step must not take every guest along."""
    try:
        step(*arguments)
    except Exception:
        traceback.print_exc()


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        stat = directory.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _be_the_pump(channel: socket.socket) -> NoReturn:
    # The lock, the clients and the guests' pipes are the spawner's.
    keep = channel.fileno()
    os.closerange(3, keep)
    os.closerange(keep + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        pump.run(channel)
    except BaseException:
        traceback.print_exc()
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


def _lock(directory: Path) -> None:
    """Hold the directory for as long as this process lives: two spawners never work on one.

    Raises:
        SystemExit: another spawner does not let go of it.
    """
    lock = os.open(directory / "spawner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                other = os.read(lock, 32).decode().strip()
                sys.exit(f"another spawner, process {other}, works on {directory}")
            time.sleep(0.02)
        else:
            break
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())


def main() -> None:
    """`python -m wasmlet.runtime.spawner DIRECTORY LISTENER_FD`; the listening socket is inherited."""
    directory, listener_fd = Path(sys.argv[1]), int(sys.argv[2])
    os.umask(0o022)
    # A guest takes two to three descriptors here.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Nobody reads the cores of guests.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The end of a service's terminal is no reason to end its containers.
    # They are blocked, not ignored, so that one that meets a guest before it is on its own is not lost.
    ends = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    for number in ends:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _lock(directory)
    SpawnerProcess(directory, socket.socket(fileno=listener_fd)).run()


if __name__ == "__main__":
    main()
