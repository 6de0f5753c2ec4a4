"""How many pods a second live a whole life."""

from __future__ import annotations

import asyncio
import time

from hack.benchmarks.figures import BenchError, Figure
from hack.benchmarks.guests import Guest
from hack.benchmarks.native import Native
from hack.benchmarks.provider import Provider, make_pod

_AT_ONCE = 8
_TARGET_PER_SECOND = 60.0


async def measure(provider: Provider, native: Native, guest: Guest, count: int) -> list[Figure]:
    """Create pods, run them to completion and delete them, some at a time; the yardstick only runs processes."""
    names = iter([f"churn-{number}" for number in range(count)])

    async def live() -> None:
        for name in names:
            pod = make_pod(guest, name)
            await provider.create(pod)
            ended = await provider.watch.until(pod, lambda message: message.pod.status.phase in ("Succeeded", "Failed"))
            if ended.status.phase != "Succeeded":
                raise BenchError(f"pod {name} failed: {ended.status}")
            await provider.delete(pod)

    begin = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(live())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    rate = count / (time.perf_counter() - begin)
    return [
        Figure(
            bench="churn",
            figure=f"{guest.name}, pods created, run and deleted, {_AT_ONCE} at once",
            value=rate,
            unit="pods/s",
            yardstick=await asyncio.to_thread(native.rate, guest.native, count, _AT_ONCE),
            at_least=_TARGET_PER_SECOND,
        )
    ]
