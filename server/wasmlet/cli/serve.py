"""Puts the provider together and runs it."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.metadata
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from wasmlet.api.images import ImageService
from wasmlet.api.node import NodeService
from wasmlet.api.pods import ProviderService
from wasmlet.api.server import TLS, Services, start
from wasmlet.images.store import ImageStore
from wasmlet.pods.clock import SystemClock
from wasmlet.pods.context import Context
from wasmlet.pods.environment import PodFacts
from wasmlet.pods.events import EventRecorder
from wasmlet.pods.manager import PodManager
from wasmlet.pods.node import NodeSettings, Taint, capacity, describe
from wasmlet.pods.store import PodStore
from wasmlet.runtime.client import Spawner
from wasmlet.runtime.compiler import CompileCache
from wasmlet.stats.machine import Machine

log = structlog.get_logger()

# What calls in flight get to end by themselves when the server stops.
_STOP_SECONDS = 1.0


class ServeError(Exception):
    """The provider cannot run; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `wasmlet serve` is told. An empty name or address is the machine's own; 0 jobs are one a processor."""

    state_dir: Path
    listen: str
    tls: TLS | None
    insecure: bool
    node_name: str
    node_ip: str
    labels: Mapping[str, str]
    taints: Sequence[Taint]
    max_pods: int
    compile_jobs: int


async def serve(settings: Settings) -> None:
    """Run the provider until SIGTERM or SIGINT.

    Raises:
        ServeError, ListenError
    """
    with _locked(settings.state_dir):
        await _serve(settings)


async def _serve(settings: Settings) -> None:
    state = settings.state_dir.resolve()
    clock = SystemClock()
    machine = Machine.read(state)
    node = NodeSettings(
        name=settings.node_name or machine.hostname,
        address=settings.node_ip or machine.address,
        labels=settings.labels,
        taints=settings.taints,
        max_pods=settings.max_pods,
        version=importlib.metadata.version("wasmlet"),
        runtime_version=importlib.metadata.version("wasmtime"),
    )
    compiler = CompileCache(state / "compiled", max_concurrent=settings.compile_jobs or machine.cpus)
    images = ImageStore(state / "images", compiler)
    events = EventRecorder(clock, node.name)
    # The pods are told of exits, and need the spawner that tells: it is connected when both are there.
    pods: PodManager
    spawner = Spawner(state_dir=state / "runtime", on_exit=lambda exit_: pods.exited(exit_))
    pods = PodManager(
        Context(
            clock=clock,
            compiler=compiler,
            events=events,
            facts=PodFacts(
                node_name=node.name,
                host_ips=(node.address,),
                pod_ips=(node.address,),
                allocatable=capacity(machine, node),
            ),
            images=images,
            logs=state / "logs",
            spawner=spawner,
            store=PodStore(state / "pods"),
        )
    )
    await spawner.connect()
    try:
        await pods.restore()
        services = Services(
            provider=ProviderService(pods, events, state / "logs"),
            node=NodeService(describe(machine, node, clock.now()), node.version),
            images=ImageService(images, compiler, pods),
        )
        server = await start(settings.listen, services, settings.tls, insecure=settings.insecure)
        log.info("serving", listen=settings.listen, node=node.name, pods=len(pods.list()), state_dir=str(state))
        await _stop_signal()
        log.info("stopping", containers_that_go_on=pods.running())
        await server.stop(_STOP_SECONDS)
    finally:
        await pods.stop()
        # Containers outlive the provider, and the spawner with them; without any there is nothing to stay for.
        await (spawner.aclose() if pods.running() else spawner.shutdown())


async def _stop_signal() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


@contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """Hold the state directory for this process alone."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ServeError(
            f"cannot use the state directory {state_dir}: {error.strerror}; choose one with --state-dir"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ServeError(f"another wasmlet uses {state_dir}; stop it, or choose another with --state-dir") from error
    try:
        yield
    finally:
        os.close(descriptor)
