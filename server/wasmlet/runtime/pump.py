"""The log pump: a process that copies the output of all guests into their logs, so that no copying delays a start."""

from __future__ import annotations

import json
import os
import select
import socket
from dataclasses import dataclass
from pathlib import Path

from wasmlet.runtime.crilog import LogFile, format_lines, format_rest, timestamp
from wasmlet.runtime.framing import Message

_CHUNK = 64 * 1024
_MAX_MESSAGE = 64 * 1024


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
    epoll = select.epoll()
    epoll.register(channel.fileno(), select.EPOLLIN)
    pipes: dict[int, _Pipe] = {}
    listening = True
    while listening or pipes:
        for fd, _ in epoll.poll():
            if fd != channel.fileno():
                _copy(fd, pipes, epoll, channel)
                continue
            data, fds, _, _ = socket.recv_fds(channel, _MAX_MESSAGE, 2)
            if not data:
                listening = False
                epoll.unregister(channel.fileno())
                continue
            _add(json.loads(data), fds, pipes, epoll)


def _add(message: Message, fds: list[int], pipes: dict[int, _Pipe], epoll: select.epoll) -> None:
    file = LogFile(Path(message["path"]), message["max_bytes"], message["max_files"])
    log = _Log(message["id"], file, len(fds))
    for fd, stream in zip(fds, (b"stdout", b"stderr"), strict=True):
        pipes[fd] = _Pipe(stream, log)
        epoll.register(fd, select.EPOLLIN)


def _copy(fd: int, pipes: dict[int, _Pipe], epoll: select.epoll, channel: socket.socket) -> None:
    pipe = pipes[fd]
    data = os.read(fd, _CHUNK)
    if data:
        lines, pipe.rest = format_lines(pipe.rest + data, pipe.stream, timestamp())
        if lines:
            pipe.log.file.write(lines)
        return
    if pipe.rest:
        pipe.log.file.write(format_rest(pipe.rest, pipe.stream, timestamp()))
    epoll.unregister(fd)
    os.close(fd)
    del pipes[fd]
    pipe.log.open_pipes -= 1
    if pipe.log.open_pipes == 0:
        pipe.log.file.close()
        try:
            channel.send(json.dumps({"drained": pipe.log.id}).encode())
        except OSError:
            return
