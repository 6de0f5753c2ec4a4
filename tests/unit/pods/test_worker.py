"""A pod's whole life against a fake clock and a fake runtime (a mock: it runs nothing, it ends processes when told)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from support.builders import FACTS, T0, FakeClock, container, pod
from wasmlet.pods.context import Context
from wasmlet.pods.events import EventRecorder
from wasmlet.pods.manager import PodManager, PodNotFoundError
from wasmlet.pods.store import PodStore
from wasmlet.pods.worker import PodWorker
from wasmlet.runtime.spec import (
    CompileError,
    Exit,
    ExitCause,
    ModuleKind,
    ProcessSpec,
    ProcessState,
    SpawnError,
    Started,
)
from wasmlet_contract.k8s.core.v1 import pod_pb2
from wasmlet_contract.virtualkubelet.provider.v1 import provider_pb2


class FakeSpawner:
    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.running: dict[str, ProcessSpec] = {}
        self.forgotten: list[str] = []
        self.signals: list[int] = []
        self.ignores_sigterm = False
        self.refuses = ""
        self.on_exit: Callable[[Exit], None] = lambda _: None

    async def start(self, spec: ProcessSpec) -> Started:
        if self.refuses:
            raise SpawnError(self.refuses)
        self.running[spec.id] = spec
        return Started(id=spec.id, pid=1, started_at=self.clock.now())

    async def kill(self, id: str, signal_: int) -> None:
        self.signals.append(signal_)
        if id in self.running and not (self.ignores_sigterm and signal_ == signal.SIGTERM):
            self.end(id, 128 + signal_, ExitCause.SIGNALLED)

    async def forget(self, id: str) -> None:
        self.forgotten.append(id)

    async def list(self) -> list[ProcessState]:
        return [ProcessState(id=id, pid=1, started_at=T0, exit=None) for id in self.running]

    def end(self, id: str, code: int, cause: ExitCause = ExitCause.EXITED, message: str = "") -> None:
        del self.running[id]
        now = self.clock.now()
        self.on_exit(Exit(id=id, code=code, cause=cause, message=message, started_at=now, finished_at=now))

    def end_all(self, code: int) -> None:
        for id in list(self.running):
            self.end(id, code)


class FakeCompiler:
    def __init__(self) -> None:
        self.error = ""
        self.block = asyncio.Event()
        self.block.set()

    async def compile(self, module: Path, digest: str) -> Any:
        await self.block.wait()
        if self.error:
            raise CompileError(self.error)
        return SimpleNamespace(artifact=module, kind=ModuleKind.CORE)


class FakeImages:
    def __init__(self) -> None:
        self.names = {"app:1"}
        self.listeners: list[Callable[[], None]] = []

    def on_import(self, listener: Callable[[], None]) -> None:
        self.listeners.append(listener)

    def find(self, name: str) -> Any:
        if name == "BAD":
            raise ValueError("invalid reference format")
        return SimpleNamespace(name=name, id="sha256:0", path=Path("/m")) if name in self.names else None

    def add(self, name: str) -> None:
        self.names.add(name)
        for listener in self.listeners:
            listener()


class Node:
    """A pod manager with everything around it faked."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.spawner = FakeSpawner(self.clock)
        self.compiler = FakeCompiler()
        self.images = FakeImages()
        self.folder = folder
        self.events = EventRecorder(self.clock, "node-1")
        self.start_manager()

    def start_manager(self) -> None:
        fakes: Any = self
        self.pods = PodManager(
            Context(
                clock=self.clock,
                compiler=fakes.compiler,
                events=self.events,
                facts=FACTS,
                images=fakes.images,
                logs=self.folder / "logs",
                spawner=fakes.spawner,
                store=PodStore(self.folder / "pods"),
            )
        )
        self.spawner.on_exit = self.pods.exited

    def create(self, p: pod_pb2.Pod) -> PodWorker:
        self.pods.create(provider_pb2.CreatePodRequest(pod=p))
        return self.pods.get(uid=p.metadata.uid)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.001)

    def reasons(self) -> list[str]:
        with self.events.watch() as watch:
            return [event.reason for event in watch._initial]


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    yield node
    await node.pods.stop()


def state(worker: PodWorker, index: int = 0) -> Any:
    return worker.snapshot().status.container_statuses[index].state


def waiting(worker: PodWorker) -> str:
    return str(state(worker).waiting.reason)


async def test_runs_to_completion(node: Node) -> None:
    worker = node.create(pod(policy="Never"))
    await node.until(lambda: len(node.spawner.running) == 1)
    assert worker.snapshot().status.phase == "Running"
    node.spawner.end_all(0)
    await node.until(lambda: bool(node.spawner.forgotten))
    assert worker.snapshot().status.phase == "Succeeded"
    assert state(worker).terminated.reason == "Completed"
    assert node.reasons() == ["Pulled", "Created", "Started"]


async def test_restarts_with_the_kubelets_back_off(node: Node) -> None:
    worker = node.create(pod())
    for restart, delay in enumerate([0, 10, 20, 40, 80, 160, 300, 300]):
        await node.until(lambda: len(node.spawner.running) == 1)
        assert worker.snapshot().status.container_statuses[0].restart_count == restart
        node.spawner.end_all(1)
        if delay:
            await node.until(lambda: waiting(worker) == "CrashLoopBackOff")
            node.clock.advance(seconds=delay - 0.5)
            await asyncio.sleep(0.01)
            assert not node.spawner.running
            node.clock.advance(seconds=0.5)
    assert "BackOff" in node.reasons()


async def test_the_message_of_the_back_off(node: Node) -> None:
    worker = node.create(pod())
    for _ in range(2):
        await node.until(lambda: len(node.spawner.running) == 1)
        node.spawner.end_all(1)
    await node.until(lambda: waiting(worker) == "CrashLoopBackOff")
    message = "back-off 10s restarting failed container=web pod=p_default(u1)"
    assert state(worker).waiting.message == message


async def test_delete_ends_the_process_and_leaves_nothing(node: Node) -> None:
    worker = node.create(pod())
    await node.until(lambda: len(node.spawner.running) == 1)
    worker.terminate(None)
    await node.until(lambda: worker.deleted)
    assert node.spawner.signals == [signal.SIGTERM]
    assert node.pods.list() == []
    assert list((node.folder / "pods").iterdir()) == []
    assert worker.snapshot().status.container_statuses[0].state.terminated.exit_code == 143
    with pytest.raises(PodNotFoundError):
        node.pods.get(namespace="default", name="p")


async def test_what_does_not_stop_is_killed_after_its_grace_period(node: Node) -> None:
    node.spawner.ignores_sigterm = True
    worker = node.create(pod())
    await node.until(lambda: len(node.spawner.running) == 1)
    worker.terminate(timedelta(seconds=7))
    await node.until(lambda: node.spawner.signals == [signal.SIGTERM])
    node.clock.advance(seconds=6.9)
    await asyncio.sleep(0.01)
    assert not worker.deleted
    node.clock.advance(seconds=0.1)
    await node.until(lambda: worker.deleted)
    assert node.spawner.signals == [signal.SIGTERM, signal.SIGKILL]


async def test_a_second_delete_shortens_the_grace_period_and_never_lengthens_it(node: Node) -> None:
    node.spawner.ignores_sigterm = True
    worker = node.create(pod())
    await node.until(lambda: len(node.spawner.running) == 1)
    worker.terminate(timedelta(seconds=10))
    worker.terminate(timedelta(seconds=60))
    assert worker.record.kill_at == T0 + timedelta(seconds=10)
    worker.terminate(timedelta(0))
    await node.until(lambda: worker.deleted)


async def test_delete_does_not_wait_for_a_compilation(node: Node) -> None:
    node.compiler.block.clear()
    worker = node.create(pod())
    await asyncio.sleep(0.01)
    worker.terminate(None)
    await node.until(lambda: worker.deleted)


async def test_the_active_deadline(node: Node) -> None:
    p = pod()
    p.spec.active_deadline_seconds = 5
    worker = node.create(p)
    await node.until(lambda: len(node.spawner.running) == 1)
    node.clock.advance(seconds=5)
    await node.until(lambda: worker.snapshot().status.phase == "Failed")
    assert worker.snapshot().status.reason == "DeadlineExceeded"
    assert not node.spawner.running
    assert not worker.deleted


@pytest.mark.parametrize(
    ("image", "policy", "reason", "later"),
    [
        ("BAD", "", "InvalidImageName", "InvalidImageName"),
        ("absent:1", "Never", "ErrImageNeverPull", "ErrImageNeverPull"),
        ("absent:1", "IfNotPresent", "ErrImagePull", "ImagePullBackOff"),
    ],
)
async def test_an_image_that_is_not_there(node: Node, image: str, policy: str, reason: str, later: str) -> None:
    worker = node.create(pod(container(image=image, image_pull_policy=policy)))
    await node.until(lambda: waiting(worker) == reason)
    assert "Failed" in node.reasons()
    node.clock.advance(seconds=10)
    await node.until(lambda: waiting(worker) == later)


async def test_a_pod_starts_by_itself_when_its_image_comes(node: Node) -> None:
    worker = node.create(pod(container(image="late:1")))
    await node.until(lambda: waiting(worker) == "ErrImagePull")
    node.images.add("late:1")
    await node.until(lambda: len(node.spawner.running) == 1)


async def test_a_pod_starts_by_itself_when_its_secret_comes(node: Node) -> None:
    p = pod()
    ref = p.spec.containers[0].env.add(name="X").value_from.secret_key_ref
    ref.local_object_reference.name, ref.key = "keys", "k"
    worker = node.create(p)
    await node.until(lambda: waiting(worker) == "CreateContainerConfigError")
    assert state(worker).waiting.message == 'secret "keys" not found'
    assert "MandatorySecretNotFound" in node.reasons()
    request = provider_pb2.CreatePodRequest(pod=p)
    secret = request.references.secrets.add()
    secret.metadata.name = "keys"
    secret.data["k"] = b"v"
    node.pods.update(request)
    await node.until(lambda: len(node.spawner.running) == 1)
    assert ("X", "v") in next(iter(node.spawner.running.values())).env


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        (lambda node: setattr(node.compiler, "error", "broken"), "CreateContainerError"),
        (lambda node: setattr(node.spawner, "refuses", "no processes"), "RunContainerError"),
    ],
)
async def test_what_cannot_start_says_why_and_tries_again(
    node: Node, fail: Callable[[Node], None], reason: str
) -> None:
    fail(node)
    worker = node.create(pod())
    await node.until(lambda: waiting(worker) == reason)
    node.compiler.error = node.spawner.refuses = ""
    node.clock.advance(seconds=10)
    await node.until(lambda: len(node.spawner.running) == 1)
    assert worker.snapshot().status.container_statuses[0].restart_count == 0


async def test_create_is_idempotent_by_uid(node: Node) -> None:
    first = node.create(pod())
    assert node.create(pod()) is first
    await node.until(lambda: len(node.spawner.running) == 1)


async def test_a_new_uid_under_an_old_name_never_meets_the_old_state(node: Node) -> None:
    old = node.create(pod(uid="old"))
    await node.until(lambda: len(node.spawner.running) == 1)
    new = node.create(pod(uid="new"))
    await node.until(lambda: old.deleted and len(node.spawner.running) == 1)
    assert node.pods.get(namespace="default", name="p") is new
    assert new.snapshot().status.container_statuses[0].restart_count == 0


async def test_a_restarted_provider_goes_on_where_it_was(node: Node) -> None:
    worker = node.create(pod())
    other = node.create(pod(uid="u2", name="q"))
    await node.until(lambda: len(node.spawner.running) == 2)
    await node.pods.stop()
    # One container ends unseen, its exit is lost with it; a stranger's process is there.
    gone = other.record.container("web").current
    assert gone is not None
    del node.spawner.running[gone.id]
    node.spawner.running["stranger"] = next(iter(node.spawner.running.values()))
    node.start_manager()
    await node.pods.restore()
    again = node.pods.get(uid=worker.uid)
    assert again.snapshot().status == worker.snapshot().status
    await node.until(lambda: len(node.spawner.running) == 2)
    assert "stranger" not in node.spawner.running
    restarted = node.pods.get(uid="u2").snapshot().status.container_statuses[0]
    assert restarted.restart_count == 1
    assert restarted.last_state.terminated.reason == "ContainerStatusUnknown"


async def test_get_returns_the_pod_as_received(node: Node) -> None:
    p = pod()
    p.metadata.annotations["a"] = "b"
    p.spec.node_selector["x"] = "y"
    worker = node.create(p)
    got = worker.snapshot()
    assert (got.metadata, got.spec) == (p.metadata, p.spec)


async def test_a_defect_in_one_pod_is_the_matter_of_that_pod(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.spawner, "start", lambda spec: 1 / 0)
    node.create(pod())
    await asyncio.sleep(0.01)
    monkeypatch.undo()
    node.create(pod(uid="u2", name="q"))
    await node.until(lambda: len(node.spawner.running) == 1)
