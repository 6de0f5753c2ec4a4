"""The processes of a node, and what they use."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from hack.benchmarks.figures import BenchError

_MB = 1e6
_SETTLE_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeProcesses:
    """A provider, its spawner, the spawner's log process, and the guests."""

    provider: psutil.Process
    spawner: psutil.Process
    log_pump: psutil.Process
    guests: Sequence[psutil.Process]

    @classmethod
    def of(cls, provider: int) -> NodeProcesses:
        """Those below the process `provider`.

        Raises:
            BenchError: they are not what a node has.
        """
        root = psutil.Process(provider)
        spawners = [child for child in root.children() if "wasmlet.runtime.spawner" in child.cmdline()]
        if len(spawners) != 1:
            raise BenchError(f"the provider has {len(spawners)} spawners instead of one")
        (spawner,) = spawners
        session = os.getsid(spawner.pid)
        # A guest leads a session of its own; what the spawner starts for itself stays in its session.
        children = spawner.children()
        helpers = [child for child in children if os.getsid(child.pid) == session]
        guests = [child for child in children if child not in helpers]
        if len(helpers) != 1:
            raise BenchError(f"the spawner has {len(helpers)} log processes instead of one")
        return cls(provider=root, spawner=spawner, log_pump=helpers[0], guests=guests)

    @property
    def own(self) -> Sequence[psutil.Process]:
        """The processes that the node itself costs."""
        return (self.provider, self.spawner, self.log_pump)


def pss(process: psutil.Process) -> float:
    """Proportional set size in MB: private memory, and the process' share of what it has in common with others."""
    return float(process.memory_full_info().pss) / _MB


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """Processor time that these have used since they began."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def settled(processes: Sequence[psutil.Process]) -> None:
    """Wait until none of these uses the processor any more.

    Raises:
        BenchError: they never come to rest.
    """
    deadline = time.monotonic() + _SETTLE_SECONDS
    before = -1.0
    while (now := cpu_seconds(processes)) != before:
        if time.monotonic() > deadline:
            raise BenchError(f"the guests that should sleep are still busy after {_SETTLE_SECONDS} s")
        before = now
        time.sleep(0.5)


def kill_all_of(folder: Path) -> int:
    """Kill every process that was started with a path in this folder; returns how many there were."""
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in word for word in process.info["cmdline"] or ())
    ]
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=_SETTLE_SECONDS)
    return len(found)
