"""Time as a dependency, so that back-off and deadlines can be tested without waiting."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where a pod gets its time from."""

    def now(self) -> datetime:
        """The time of day, in UTC."""

    async def wait(self, event: asyncio.Event, until: datetime | None) -> None:
        """Return when `event` is set, or when the clock reads `until` (None: never)."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def wait(self, event: asyncio.Event, until: datetime | None) -> None:
        if until is None:
            await event.wait()
            return
        # A step of the wall clock must not strand a deadline for hours: look again every minute.
        seconds = min((until - self.now()).total_seconds(), 60)
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return
