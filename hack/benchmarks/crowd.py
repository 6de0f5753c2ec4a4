"""What many sleeping pods cost: memory, processor time, and the time to list them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import mean

from hack.benchmarks.figures import Figure, p50
from hack.benchmarks.guests import Guest
from hack.benchmarks.native import Native
from hack.benchmarks.processes import cpu_seconds, pss, settled
from hack.benchmarks.provider import Provider, make_pod

_TARGET_RUNNING_SECONDS = 15.0
_TARGET_PSS_MB = 2.0
_TARGET_IDLE_PERCENT = 2.0
_TARGET_LIST_MS = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """Pods that run and sleep."""

    provider: Provider
    guest: Guest
    count: int
    # From the first CreatePod until the last pod was told to be Running.
    seconds_to_run: float


@asynccontextmanager
async def crowd(provider: Provider, guest: Guest, count: int) -> AsyncIterator[Crowd]:
    """Create so many pods of a program that sleeps, all at once."""
    pods = [make_pod(guest, f"sleep-{number}") for number in range(count)]
    begin = time.perf_counter()
    await asyncio.gather(*(provider.create(pod) for pod in pods))
    await asyncio.gather(
        *(provider.watch.until(pod, lambda message: message.pod.status.phase == "Running") for pod in pods)
    )
    seconds = time.perf_counter() - begin
    await asyncio.to_thread(settled, provider.processes().guests)
    yield Crowd(provider=provider, guest=guest, count=count, seconds_to_run=seconds)
    await asyncio.gather(*(provider.delete(pod) for pod in pods))


def density(crowd: Crowd, native: Native, *, targets: bool) -> list[Figure]:
    """Time until all run, and memory. `targets`: judge them."""
    processes = crowd.provider.processes()
    sizes = [pss(guest) for guest in processes.guests]
    # As many: the pages that all have in common weigh less on each, the more there are.
    with native.running(crowd.guest.native, crowd.count) as sleepers:
        native_sizes = [pss(sleeper) for sleeper in sleepers]

    def figure(name: str, value: float, yardstick: float | None = None, at_most: float | None = None) -> Figure:
        return Figure(
            bench="density",
            figure=f"{crowd.guest.name}, {crowd.count} pods, {name}",
            value=value,
            unit="MB",
            yardstick=yardstick,
            at_most=at_most if targets else None,
        )

    return [
        Figure(
            bench="density",
            figure=f"{crowd.guest.name}, {crowd.count} pods, all Running",
            value=crowd.seconds_to_run,
            unit="s",
            at_most=_TARGET_RUNNING_SECONDS if targets else None,
        ),
        figure("PSS of a pod, mean", mean(sizes), mean(native_sizes), _TARGET_PSS_MB),
        figure("PSS of a pod, max", max(sizes), max(native_sizes)),
        figure("PSS of the provider", pss(processes.provider)),
        figure("PSS of the spawner", pss(processes.spawner)),
        figure("PSS of the log process", pss(processes.log_pump)),
    ]


async def idle(crowd: Crowd, seconds: float) -> list[Figure]:
    """Processor time of the node's own processes while every pod sleeps."""
    processes = crowd.provider.processes()
    begin, used = time.perf_counter(), cpu_seconds(processes.own)
    await asyncio.sleep(seconds)
    used = cpu_seconds(processes.own) - used
    return [
        Figure(
            bench="idle",
            figure=f"processor time with {crowd.count} sleeping pods",
            value=100 * used / (time.perf_counter() - begin),
            unit="% of a core",
            at_most=_TARGET_IDLE_PERCENT,
        )
    ]


async def listing(crowd: Crowd, calls: int) -> list[Figure]:
    """Time to hear of all pods: by a list, and by a new watch."""

    async def figure(name: str, call: Callable[[], Awaitable[object]], at_most: float | None = None) -> Figure:
        samples = []
        for _ in range(calls):
            begin = time.perf_counter()
            await call()
            samples.append((time.perf_counter() - begin) * 1000)
        return Figure(
            bench="list", figure=f"{name} of {crowd.count} pods, p50", value=p50(samples), unit="ms", at_most=at_most
        )

    return [
        await figure("GetPods", crowd.provider.list, _TARGET_LIST_MS),
        await figure("NotifyPods until synced", crowd.provider.sync),
    ]
