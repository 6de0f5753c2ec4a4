"""What to do next for a pod: a pure function of its spec, its record and the time.

The order and the rules are the kubelet's: https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/ and
https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from wasmlet_contract.k8s.core.v1 import container_pb2, pod_pb2

from wasmlet.pods.record import ContainerRecord, Ending, PodRecord


@dataclass(slots=True)
class Plan:
    """The next steps of a pod."""

    # To start now, in this order.
    start: list[container_pb2.Container] = field(default_factory=list)
    # Names of running containers to stop.
    stop: list[str] = field(default_factory=list)
    # Containers that wait for their back-off, and how long that is.
    back_off: dict[str, timedelta] = field(default_factory=dict)
    # Set when the pod as a whole has to end now.
    end: Ending | None = None
    # When to look again though nothing happened. None: not before something does.
    wake_at: datetime | None = None

    def wake(self, at: datetime) -> None:
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)


def plan(pod: pod_pb2.Pod, record: PodRecord, now: datetime) -> Plan:
    """The next steps of `pod` at `now`."""
    result = Plan()
    sidecars = [c for c in pod.spec.init_containers if is_sidecar(c)]
    if record.ending is not None:
        result.stop = _to_stop(pod, sidecars, record)
        return result
    if finished(pod, record):
        result.stop = _to_stop(pod, sidecars, record)
        return result
    deadline = deadline_of(pod, record)
    if deadline is not None:
        if now >= deadline:
            result.end = Ending.DEADLINE_EXCEEDED
            return result
        result.wake(deadline)
    if _initialize(pod, record, now, result):
        for container in pod.spec.containers:
            _next(container, restart_policy(pod), record.container(container.name), now, result)
    return result


def restart_policy(pod: pod_pb2.Pod) -> str:
    return pod.spec.restart_policy or "Always"


def is_sidecar(container: container_pb2.Container) -> bool:
    """Whether an init container goes on beside the main containers."""
    return container.restart_policy == "Always"


def deadline_of(pod: pod_pb2.Pod, record: PodRecord) -> datetime | None:
    """When activeDeadlineSeconds ends, counted from the pod's acceptance by this node."""
    if not pod.spec.HasField("active_deadline_seconds"):
        return None
    return record.accepted_at + timedelta(seconds=pod.spec.active_deadline_seconds)


def initialized(pod: pod_pb2.Pod, record: PodRecord) -> bool:
    """Whether every init container has done its part: ended well, or is a sidecar that has started."""
    return all(init_done(c, record.container(c.name)) for c in pod.spec.init_containers)


def init_failed(pod: pod_pb2.Pod, record: PodRecord) -> bool:
    """Whether an init container has failed for good."""
    return restart_policy(pod) == "Never" and any(
        not is_sidecar(c) and _ended_badly(record.container(c.name)) for c in pod.spec.init_containers
    )


def finished(pod: pod_pb2.Pod, record: PodRecord) -> bool:
    """Whether no main container runs or will ever run again, by the restart policy."""
    if init_failed(pod, record):
        return True
    return all(
        (attempt := record.container(c.name).current) is not None
        and not attempt.running
        and not _restarts(restart_policy(pod), attempt.exit_code)
        for c in pod.spec.containers
    )


def init_done(container: container_pb2.Container, record: ContainerRecord) -> bool:
    """Whether one init container has done its part."""
    if record.current is None:
        return False
    return is_sidecar(container) or record.current.succeeded


def _ended_badly(record: ContainerRecord) -> bool:
    return record.current is not None and not record.current.running and not record.current.succeeded


def _restarts(policy: str, exit_code: int) -> bool:
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def _initialize(pod: pod_pb2.Pod, record: PodRecord, now: datetime, result: Plan) -> bool:
    """Plan the init containers; returns whether the main containers may start."""
    for container in pod.spec.init_containers:
        state = record.container(container.name)
        if is_sidecar(container):
            _next(container, "Always", state, now, result)
        elif not init_done(container, state):
            # Always means for init containers: until they succeed.
            policy = "Never" if restart_policy(pod) == "Never" else "OnFailure"
            _next(container, policy, state, now, result)
        if not init_done(container, state):
            return False
    return True


def _next(container: container_pb2.Container, policy: str, state: ContainerRecord, now: datetime, result: Plan) -> None:
    if state.running:
        return
    if state.start_failed_at is not None:
        retry_at, delay = state.start_backoff.retry_at(state.start_failed_at), None
    elif state.current is None:
        retry_at, delay = now, None
    else:
        ended_at = state.current.finished_at or now
        if not _restarts(policy, state.current.exit_code):
            return
        retry_at, delay = state.restart_backoff.retry_at(ended_at), state.restart_backoff.delay
    if retry_at <= now:
        result.start.append(container)
        return
    result.wake(retry_at)
    if delay is not None:
        result.back_off[container.name] = delay


def _to_stop(pod: pod_pb2.Pod, sidecars: Iterable[container_pb2.Container], record: PodRecord) -> list[str]:
    """Everything but sidecars at once; then the sidecars one by one, in the reverse of their order."""
    names = {c.name for c in sidecars}
    running = [name for name, state in record.containers.items() if state.running]
    main = [name for name in running if name not in names]
    if main:
        return main
    return [c.name for c in reversed(list(sidecars)) if c.name in running][:1]
