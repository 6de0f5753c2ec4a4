"""How long a container takes from the request to its first byte of output."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from wasmlet.runtime.client import Spawner
from wasmlet.runtime.compiler import CompileCache, Compiled
from wasmlet.runtime.spec import Exit, LogSpec, Preopen, ProcessSpec

from hack.benchmarks.figures import BenchError, Figure, p50, p99
from hack.benchmarks.guests import Guest
from hack.benchmarks.native import Native
from hack.benchmarks.provider import Provider, make_pod, started

_POD_TARGET_MS = 10.0

# Starts one process; returns the seconds from the call, and from the fork, to the first byte in its log.
StartProcess = Callable[[], Awaitable[tuple[float, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """Milliseconds to the first byte of output, each from another beginning."""

    pod_to_reader: float
    pod_to_log: float
    call_to_log: float
    fork_to_log: float
    native: float


async def measure(provider: Provider, native: Native, folder: Path, guest: Guest, count: int) -> list[Figure]:
    """Start a pod, a bare process and a native one in turn, so that all meet the same machine."""
    samples = []
    async with _spawner(folder, guest) as start_process:
        for number in range(count):
            reader, log = await _start_pod(provider, guest, f"start-{number}")
            call, fork = await start_process()
            samples.append(
                _Sample(
                    pod_to_reader=reader * 1000,
                    pod_to_log=log * 1000,
                    call_to_log=call * 1000,
                    fork_to_log=fork * 1000,
                    native=native.first_byte(guest.native) * 1000,
                )
            )
    native_p50 = p50([sample.native for sample in samples])
    native_p99 = p99([sample.native for sample in samples])

    def figure(name: str, value: float, yardstick: float, at_most: float | None = None) -> Figure:
        return Figure(
            bench="start", figure=f"{guest.name}, {name}", value=value, unit="ms", yardstick=yardstick, at_most=at_most
        )

    to_reader = [sample.pod_to_reader for sample in samples]
    to_log = [sample.pod_to_log for sample in samples]
    from_call = [sample.call_to_log for sample in samples]
    from_fork = [sample.fork_to_log for sample in samples]
    return [
        figure("CreatePod to first byte read, p50", p50(to_reader), native_p50, _POD_TARGET_MS),
        figure("CreatePod to first byte read, p99", p99(to_reader), native_p99),
        figure("CreatePod to first byte in the log, p50", p50(to_log), native_p50),
        figure("spawner's call to first byte in the log, p50", p50(from_call), native_p50),
        figure("fork to first byte in the log, p50", p50(from_fork), native_p50, native_p50),
        figure("fork to first byte in the log, p99", p99(from_fork), native_p99),
    ]


async def _start_pod(provider: Provider, guest: Guest, name: str) -> tuple[float, float]:
    """Seconds from the call to its first byte at a reader, and in its log."""
    pod = make_pod(guest, name)
    called_at, begin = time.time(), time.perf_counter()
    await provider.create(pod)
    await provider.watch.until(pod, started)
    output = await provider.follow(pod)
    read = time.perf_counter() - begin
    await provider.delete(pod)
    return read, _written_at(output) - called_at


@asynccontextmanager
async def _spawner(folder: Path, guest: Guest) -> AsyncIterator[StartProcess]:
    """The runtime alone, without pods and gRPC."""
    root, logs = folder / "root", folder / "logs"
    root.mkdir(exist_ok=True)
    logs.mkdir(exist_ok=True)
    exits: asyncio.Queue[Exit] = asyncio.Queue()
    compiled = await CompileCache(folder / "compiled", max_concurrent=1).compile(guest.module, guest.digest)
    spawner = Spawner(state_dir=folder / "spawner", on_exit=exits.put_nowait)

    async def start_process() -> tuple[float, float]:
        spec = _process(guest, compiled, root, logs)
        called_at = time.time()
        process = await spawner.start(spec)
        ended = await exits.get()
        if ended.code != 0:
            raise BenchError(f"{guest.name} failed: {ended.message or ended.code}")
        await spawner.forget(spec.id)
        written_at = _written_at(spec.log.path.read_bytes())
        spec.log.path.unlink()
        return written_at - called_at, written_at - process.started_at.timestamp()

    try:
        yield start_process
    finally:
        await spawner.shutdown()


def _process(guest: Guest, compiled: Compiled, root: Path, logs: Path) -> ProcessSpec:
    name = f"bench-{time.time_ns()}"
    return ProcessSpec(
        id=name,
        artifact=compiled.artifact,
        kind=compiled.kind,
        argv=(guest.module.stem,),
        env=(),
        preopens=(Preopen(host=root, guest="/"),),
        log=LogSpec(path=logs / f"{name}.log"),
    )


def _written_at(log: bytes) -> float:
    """The time of a log's first line in seconds since the epoch."""
    return datetime.fromisoformat(log.partition(b" ")[0].decode()).timestamp()
