"""Messages between the provider, the spawner and the log pump: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]


def pack(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Unpacker:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that `data` completes."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._parts.append(line)
            whole, self._parts = b"".join(self._parts), []
            yield json.loads(whole)
        if rest:
            self._parts.append(rest)
