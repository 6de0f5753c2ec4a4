"""`hack/bench`: measures and prints."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from hack.benchmarks import churn, crowd, start
from hack.benchmarks.figures import BenchError, Figure, print_table
from hack.benchmarks.guests import Guests, build
from hack.benchmarks.native import Native
from hack.benchmarks.provider import Provider, running_provider

_NAMES = ("start", "churn", "density", "idle", "list")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much is measured."""

    starts: int = 200
    churned_pods: int = 600
    c_sleepers: int = 500
    go_sleepers: int = 50
    idle_seconds: float = 30
    lists: int = 20


_QUICK = Counts(starts=10, churned_pods=40, c_sleepers=20, go_sleepers=5, idle_seconds=2, lists=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What the benches measure with, and who is told the figures."""

    folder: Path
    native: Native
    guests: Guests
    counts: Counts
    report: Callable[[list[Figure]], None]

    async def run(self, names: set[str]) -> None:
        """Measure what is named, in a fixed order."""
        async with running_provider(self.folder) as provider:
            for guest in self.guests.all:
                await provider.import_image(guest)
            if "start" in names:
                for guest in self.guests.hellos:
                    _say(f"start: {self.counts.starts} times {guest.name}")
                    self.report(await start.measure(provider, self.native, self.folder, guest, self.counts.starts))
            if "churn" in names:
                _say(f"churn: {self.counts.churned_pods} pods")
                self.report(await churn.measure(provider, self.native, self.guests.c_hello, self.counts.churned_pods))
            if names & {"density", "list", "idle"}:
                await self._crowds(provider, names)

    async def _crowds(self, provider: Provider, names: set[str]) -> None:
        _say(f"{', '.join(sorted(names & {'density', 'list', 'idle'}))}: {self.counts.c_sleepers} sleeping pods")
        async with crowd.crowd(provider, self.guests.c_sleep, self.counts.c_sleepers) as sleepers:
            if "density" in names:
                self.report(await asyncio.to_thread(crowd.density, sleepers, self.native, targets=True))
            if "list" in names:
                self.report(await crowd.listing(sleepers, self.counts.lists))
            if "idle" in names:
                self.report(await crowd.idle(sleepers, self.counts.idle_seconds))
        if "density" in names:
            async with crowd.crowd(provider, self.guests.go_sleep, self.counts.go_sleepers) as sleepers:
                self.report(await asyncio.to_thread(crowd.density, sleepers, self.native, targets=False))


async def bench(names: set[str], counts: Counts, *, as_json: bool) -> None:
    """Measure in a folder that is removed afterwards; figures are printed even if a later one fails."""
    this = asyncio.current_task()
    assert this is not None  # noqa: S101  for the type checker
    for number in (signal.SIGINT, signal.SIGTERM):
        # Cancelled, it cleans up on its way out.
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    measured: list[Figure] = []

    def report(figures: list[Figure]) -> None:
        measured.extend(figures)
        if as_json:
            print(*(figure.to_json() for figure in figures), sep="\n", flush=True)

    with tempfile.TemporaryDirectory(prefix="wasmlet-bench-") as name:
        folder = Path(name)
        native = Native.find(folder)
        print(_machine(native), file=sys.stderr if as_json else sys.stdout, flush=True)
        _say("building the guests")
        guests = build(folder, native)
        try:
            await Bench(folder=folder, native=native, guests=guests, counts=counts, report=report).run(names)
        finally:
            if not as_json and measured:
                print_table(measured, sys.stdout)


def _machine(native: Native) -> str:
    return (
        f"{os.cpu_count()} cores, Linux {platform.release()} {platform.machine()}, Python {platform.python_version()}, "
        f"wasmtime-py {importlib.metadata.version('wasmtime')} beside the wasmtime command {native.version}"
    )


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="hack/bench", description="Measure the node beside the native wasmtime command, in one run."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(_NAMES)} or all (the default)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead of a table")
    parser.add_argument("--quick", action="store_true", help="measure little: to see that it works, not for figures")
    options = parser.parse_args()
    for name in options.names:
        if name not in (*_NAMES, "all"):
            parser.error(f"there is no bench {name!r}: choose from {', '.join(_NAMES)}, all")
    names = set(_NAMES) if not options.names or "all" in options.names else set(options.names)
    try:
        asyncio.run(bench(names, _QUICK if options.quick else Counts(), as_json=options.json))
    except grpc.aio.AioRpcError as error:
        print(f"hack/bench: the provider answered {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    except (BenchError, subprocess.CalledProcessError) as error:
        print(f"hack/bench: {error}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
