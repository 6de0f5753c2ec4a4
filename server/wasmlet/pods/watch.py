"""Level-triggered watching: a reader always gets the newest of everything, however slow it reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Watch(Generic[K, V]):
    """One reader's view: at most one pending value per key, so one that never reads costs no more than the state."""

    def __init__(self, initial: Mapping[K, V]) -> None:
        self._initial = list(initial.values())
        self._pending: dict[K, V] = {}
        self._changed = asyncio.Event()

    def put(self, key: K, value: V) -> None:
        self._pending[key] = value
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[list[V]]:
        """Yield everything that there is, at once and even if it is nothing, and then the changes as they come."""
        yield self._initial
        self._initial = []
        while True:
            await self._changed.wait()
            self._changed.clear()
            values, self._pending = list(self._pending.values()), {}
            yield values


class Broadcast(Generic[K, V]):
    """Tells every watch of each change."""

    def __init__(self) -> None:
        self._watches: set[Watch[K, V]] = set()

    def publish(self, key: K, value: V) -> None:
        for watch in self._watches:
            watch.put(key, value)

    @contextmanager
    def watch(self, state: Mapping[K, V]) -> Iterator[Watch[K, V]]:
        """A watch that begins with `state`, for as long as the context lasts."""
        watch = Watch(state)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)
