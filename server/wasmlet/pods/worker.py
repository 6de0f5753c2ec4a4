"""One pod's own task: looks at what is, does the next step, waits for something to happen."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import structlog
from wasmlet_contract.k8s.core.v1 import container_pb2, pod_pb2
from wasmlet_contract.virtualkubelet.provider.v1 import provider_pb2

from wasmlet.pods import lifecycle, status
from wasmlet.pods.container import ContainerError, log_folder, prepare
from wasmlet.pods.context import Context
from wasmlet.pods.record import Attempt, ContainerRecord, Ending, PodRecord
from wasmlet.pods.references import References
from wasmlet.runtime.spec import Exit, ExitCause, SpawnError

log = structlog.get_logger()

DEFAULT_GRACE_SECONDS = 30


class PodWorker:
    """Owns the state of one pod. Its methods are called on the event loop, its state changes nowhere else."""

    def __init__(
        self,
        request: provider_pb2.CreatePodRequest,
        record: PodRecord,
        context: Context,
        publish: Callable[[PodWorker], None],
        claim: Callable[[str, PodWorker], None],
    ) -> None:
        self._request = request
        self.record = record
        # The pod has ended and its files are gone.
        self.deleted = False
        self._context = context
        self._publish = publish
        self._claim = claim
        self._woken = asyncio.Event()
        self._preparing: asyncio.Task[object] | None = None
        self._snapshot: pod_pb2.Pod | None = None
        self._saved = b""
        self._ended: list[str] = []
        self._endings: dict[str, asyncio.Event] = {}

    @property
    def pod(self) -> pod_pb2.Pod:
        return self._request.pod

    @property
    def uid(self) -> str:
        return self.pod.metadata.uid

    @property
    def name(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.pod.metadata.namespace, self.pod.metadata.name

    def snapshot(self) -> pod_pb2.Pod:
        """The pod as received, with its status as it is. Not to be changed."""
        if self._snapshot is None:
            self._snapshot = pod_pb2.Pod()
            self._snapshot.CopyFrom(self.pod)
            self._snapshot.status.CopyFrom(
                status.build(self.pod, self.record, self._context.facts, self._context.clock.now())
            )
        return self._snapshot

    def ending(self, attempt: Attempt) -> asyncio.Event:
        """An event that is set when the attempt has ended."""
        ending = self._endings.setdefault(attempt.id, asyncio.Event()) if attempt.running else asyncio.Event()
        if not attempt.running:
            ending.set()
        return ending

    def update(self, request: provider_pb2.CreatePodRequest) -> None:
        """Take over a newer spec, and newer content of what it refers to."""
        if request != self._request:
            self._request = request
            self.retry()

    def retry(self) -> None:
        """Try at once what could not start before: something that it lacked may be there now."""
        for container in self.record.containers.values():
            container.start_failed_at = None
        self._changed()
        self._woken.set()

    def terminate(self, grace: timedelta | None) -> None:
        """Begin to end the pod, or shorten the time that it has left. None: the grace period that the pod asks for."""
        now = self._context.clock.now()
        kill_at = now + (self._grace() if grace is None else grace)
        first = self.record.ending is not Ending.DELETED
        self.record.ending = Ending.DELETED
        if self.record.kill_at is None or first or kill_at < self.record.kill_at:
            self.record.kill_at = kill_at
        if self._preparing is not None:
            self._preparing.cancel()
        self._changed()
        self._woken.set()

    def exited(self, exit_: Exit) -> None:
        """A process of this pod has ended."""
        self._ended.append(exit_.id)
        for container in self.record.containers.values():
            attempt = container.current
            if attempt is not None and attempt.id == exit_.id and attempt.running:
                self._record_exit(container, attempt, exit_)
        self._changed()
        self._woken.set()

    async def run(self) -> None:
        """Live the pod's life; returns when the pod is deleted and nothing of it is left."""
        self._changed()
        while True:
            self._woken.clear()
            now = self._context.clock.now()
            plan = lifecycle.plan(self.pod, self.record, now)
            if plan.end is not None:
                self._end(plan.end, now)
                continue
            for container in plan.start:
                await self._start(container)
            for name, delay in plan.back_off.items():
                self._back_off(name, delay)
            wake_at = await self._stop(plan, now)
            await self._forget_ended()
            if self.record.ending is Ending.DELETED and not self._running():
                break
            self._changed()
            if not plan.start:
                await self._context.clock.wait(self._woken, wake_at)
        await asyncio.to_thread(self._remove_files)
        self.deleted = True
        self._snapshot = None
        self._publish(self)

    async def _start(self, container: container_pb2.Container) -> None:
        """Start one container; what stands against it is told in its status and in an event."""
        if self.record.ending is not None:
            return
        state = self.record.container(container.name)
        try:
            attempt = await self._prepare_and_spawn(container, state)
        except ContainerError as error:
            self._start_failed(container.name, state, error)
        else:
            if attempt is not None:
                self._context.events.normal(self.pod, "Started", f"Started container {container.name}", container.name)
        self._changed()

    async def _prepare_and_spawn(self, container: container_pb2.Container, state: ContainerRecord) -> Attempt | None:
        context, now = self._context, self._context.clock.now()
        container_id = secrets.token_hex(32)
        references = References.of(self._request.references, self.pod.metadata.namespace)
        # A compilation may take seconds, and the end of the pod must not wait for it.
        preparing = asyncio.create_task(
            prepare(self.pod, container, references, container_id, self._restarts_after(state), context)
        )
        self._preparing = preparing
        try:
            prepared = await preparing
        except asyncio.CancelledError:
            if self.record.ending is None:
                raise
            return None
        finally:
            self._preparing = None
        context.events.normal(self.pod, "Created", f"Created container: {container.name}", container.name)
        before = replace(state)
        if state.current is not None and state.current.finished_at is not None:
            state.restart_backoff.tried(state.current.finished_at, now)
        attempt = Attempt(
            id=container_id,
            image=prepared.image.name,
            image_id=prepared.image.id,
            started_at=context.clock.now(),
        )
        state.begin(attempt)
        # Known on disk before there is a process, so that no process is ever unknown.
        self._claim(container_id, self)
        self._save()
        try:
            started = await context.spawner.start(prepared.spec)
        except SpawnError as error:
            state.current, state.previous, state.restarts = before.current, before.previous, before.restarts
            raise ContainerError("RunContainerError", str(error)) from error
        attempt.started_at = started.started_at
        return attempt

    @staticmethod
    def _restarts_after(state: ContainerRecord) -> int:
        return state.restarts if state.current is None else state.restarts + 1

    def _start_failed(self, name: str, state: ContainerRecord, error: ContainerError) -> None:
        now = self._context.clock.now()
        again = state.start_backoff.last_try is not None and state.waiting_reason in (
            error.reason,
            error.again,
        )
        state.start_failed_at = now
        state.start_backoff.tried(now, now)
        state.wait(error.again if again else error.reason, str(error))
        if error.event_reason:
            self._context.events.warning(self.pod, error.event_reason, str(error), name)
        self._context.events.warning(self.pod, "Failed", f"Error: {error}", name)

    def _back_off(self, name: str, delay: timedelta) -> None:
        namespace, pod_name = self.name
        state = self.record.container(name)
        message = (
            f"back-off {_duration(delay)} restarting failed container={name} pod={pod_name}_{namespace}({self.uid})"
        )
        if (state.waiting_reason, state.waiting_message) == ("CrashLoopBackOff", message):
            return
        state.wait("CrashLoopBackOff", message)
        self._context.events.warning(
            self.pod,
            "BackOff",
            f"Back-off restarting failed container {name} in pod {pod_name}_{namespace}({self.uid})",
            name,
        )

    def _end(self, ending: Ending, now: datetime) -> None:
        self.record.ending = ending
        self.record.kill_at = now + self._grace()
        message = "Active deadline exceeded"
        self._context.events.normal(self.pod, ending.value, message)

    async def _stop(self, plan: lifecycle.Plan, now: datetime) -> datetime | None:
        """Ask containers to stop, or kill them when their time is over; returns when to look again."""
        kill_at = self.record.kill_at
        if not plan.stop:
            return plan.wake_at
        if kill_at is None:
            # Sidecars of a pod whose work is done.
            self.record.kill_at = kill_at = now + self._grace()
        for name in plan.stop:
            state = self.record.container(name)
            attempt = state.current
            if attempt is None:
                continue
            if now >= kill_at:
                await self._context.spawner.kill(attempt.id, signal.SIGKILL)
            elif not attempt.stopping:
                attempt.stopping = True
                self._context.events.normal(self.pod, "Killing", f"Stopping container {name}", name)
                await self._context.spawner.kill(attempt.id, signal.SIGTERM)
        return kill_at if now < kill_at else None

    async def _forget_ended(self) -> None:
        """The exits are on disk here, so the runtime need not keep them any longer."""
        if not self._ended:
            return
        self._save()
        ended, self._ended = self._ended, []
        for container_id in ended:
            await self._context.spawner.forget(container_id)

    def _record_exit(self, container: ContainerRecord, attempt: Attempt, exit_: Exit) -> None:
        attempt.running = False
        if (ending := self._endings.pop(attempt.id, None)) is not None:
            ending.set()
        attempt.started_at, attempt.finished_at = exit_.started_at, exit_.finished_at
        attempt.exit_code = exit_.code
        attempt.message = exit_.message
        attempt.reason = _reason(exit_)
        if exit_.cause is ExitCause.START_FAILED:
            self._context.events.warning(self.pod, "Failed", f"Error: {exit_.message}", container.name)

    def _running(self) -> bool:
        return any(container.running for container in self.record.containers.values())

    def _grace(self) -> timedelta:
        meta, spec = self.pod.metadata, self.pod.spec
        if self.record.ending is Ending.DELETED and meta.HasField("deletion_grace_period_seconds"):
            return timedelta(seconds=meta.deletion_grace_period_seconds)
        if spec.HasField("termination_grace_period_seconds"):
            return timedelta(seconds=spec.termination_grace_period_seconds)
        return timedelta(seconds=DEFAULT_GRACE_SECONDS)

    def _changed(self) -> None:
        """Something about the pod may be different: keep it, and tell it."""
        self._snapshot = None
        self.snapshot()
        self._save()
        self._publish(self)

    def _remove_files(self) -> None:
        shutil.rmtree(log_folder(self._context.logs, self.pod), ignore_errors=True)
        self._context.store.remove(self.uid)

    def _save(self) -> None:
        if self.deleted:
            return
        data = self.record.dump()
        if data != self._saved:
            try:
                self._context.store.save_record(self.uid, data)
            except OSError as error:
                # The pod goes on; the next change tries again.
                log.error("cannot save the state of a pod", uid=self.uid, error=str(error))
                return
            self._saved = data


def _reason(exit_: Exit) -> str:
    match exit_.cause:
        case ExitCause.START_FAILED:
            return "StartError"
        case ExitCause.LOST:
            return "ContainerStatusUnknown"
        case _:
            return "Completed" if exit_.code == 0 else "Error"


def _duration(delay: timedelta) -> str:
    """A duration as Go prints it: 10s, 1m20s, 5m0s."""
    minutes, seconds = divmod(int(delay.total_seconds()), 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
