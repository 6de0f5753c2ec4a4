"""The log pump: a process that copies the output of all guests into their logs, so that no copying delays a start."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from wasmlet.runtime.crilog import LogFile, format_lines, format_rest, timestamp
from wasmlet.runtime.framing import Message

_CHUNK = 64 * 1024
_MAX_MESSAGE = 64 * 1024
_STREAMS = (b"stdout", b"stderr")


@dataclass(slots=True)
class _Log:
    """The log of one process, fed by its two pipes."""

    id: str
    file: LogFile
    open_pipes: int


@dataclass(slots=True)
class _Pipe:
    stream: bytes
    log: _Log
    # A line that has not ended yet.
    rest: bytes = b""


def send_log(channel: socket.socket, message: Message, pipes: list[int]) -> None:
    """Hand the pump the reading ends of a process' stdout and stderr and say where its log is."""
    socket.send_fds(channel, [json.dumps(message).encode()], pipes)


def run(channel: socket.socket) -> None:
    """Pump until the spawner is gone and every pipe is drained.

    `channel` is a packet socket: the spawner sends a message with two pipes for each process, and gets the message
    `{"drained": id}` when both have ended and all is in the log.
    """
    _Pump(channel).run()


class _Pump:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._epoll = select.epoll()
        self._pipes: dict[int, _Pipe] = {}

    def run(self) -> None:
        told = self._channel.fileno()
        self._epoll.register(told, select.EPOLLIN)
        listening = True
        while listening or self._pipes:
            for fd, _ in self._epoll.poll():
                if fd != told:
                    self._copy(fd, self._pipes[fd])
                elif not self._take_over():
                    listening = False
                    self._epoll.unregister(told)

    def _take_over(self) -> bool:
        """Take the pipes of one process; False if the spawner is gone."""
        data, fds, _, _ = socket.recv_fds(self._channel, _MAX_MESSAGE, 2)
        if not data:
            return False
        message = json.loads(data)
        if len(fds) < len(_STREAMS):
            # The kernel leaves out descriptors that do not fit into this process.
            print(f"{message['id']} has no log: too many open files", file=sys.stderr, flush=True)
            for fd in fds:
                os.close(fd)
            self._tell_drained(message["id"])
            return True
        file = LogFile(Path(message["path"]), message["max_bytes"], message["max_files"])
        log = _Log(message["id"], file, len(fds))
        for fd, stream in zip(fds, _STREAMS, strict=True):
            self._pipes[fd] = _Pipe(stream, log)
            self._epoll.register(fd, select.EPOLLIN)
        return True

    def _copy(self, fd: int, pipe: _Pipe) -> None:
        data = os.read(fd, _CHUNK)
        if not data:
            self._close(fd, pipe)
            return
        output = pipe.rest + data
        lines, pipe.rest = format_lines(output, pipe.stream, timestamp())
        if lines:
            pipe.log.file.write(lines, len(output) - len(pipe.rest))

    def _close(self, fd: int, pipe: _Pipe) -> None:
        if pipe.rest:
            pipe.log.file.write(format_rest(pipe.rest, pipe.stream, timestamp()), len(pipe.rest))
        self._epoll.unregister(fd)
        os.close(fd)
        del self._pipes[fd]
        pipe.log.open_pipes -= 1
        if pipe.log.open_pipes == 0:
            pipe.log.file.finish()
            self._tell_drained(pipe.log.id)

    def _tell_drained(self, id_: str) -> None:
        # A spawner that is gone hears nothing; the pump goes as well, after the last pipe.
        with contextlib.suppress(OSError):
            self._channel.send(json.dumps({"drained": id_}).encode())
