"""A pod's status as the kubelet would report it, from its spec and record.

https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-phase and #pod-conditions
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from wasmlet_contract.k8s.core.v1 import container_pb2, container_status_pb2, pod_pb2

from wasmlet.pods.environment import PodFacts
from wasmlet.pods.lifecycle import init_done, init_failed, initialized, is_sidecar, restart_policy
from wasmlet.pods.record import Attempt, ContainerRecord, Ending, PodRecord

CONTAINER_ID_SCHEME = "wasmlet://"
_ENDING_MESSAGES = {
    Ending.DEADLINE_EXCEEDED: "Pod was active on the node longer than the specified deadline",
}


def build(pod: pod_pb2.Pod, record: PodRecord, facts: PodFacts, now: datetime) -> pod_pb2.PodStatus:
    """The status of `pod` at `now`. Notes in the record when a condition changes."""
    status = pod_pb2.PodStatus(
        phase=phase(pod, record),
        start_time=timestamp(record.accepted_at),
        qos_class=qos_class(pod),
        host_ip=facts.host_ips[0],
        pod_ip=facts.pod_ips[0],
        observed_generation=pod.metadata.generation,
    )
    for host_ip in facts.host_ips:
        status.host_ips.add(ip=host_ip)
    for pod_ip in facts.pod_ips:
        status.pod_ips.add(ip=pod_ip)
    if record.ending in _ENDING_MESSAGES:
        status.reason, status.message = record.ending.value, _ENDING_MESSAGES[record.ending]
    first = "PodInitializing" if pod.spec.init_containers else "ContainerCreating"
    status.init_container_statuses.extend(_container(c, record, first, init=True) for c in pod.spec.init_containers)
    status.container_statuses.extend(_container(c, record, first, init=False) for c in pod.spec.containers)
    status.conditions.extend(_conditions(pod, record, status, now))
    return status


def phase(pod: pod_pb2.Pod, record: PodRecord) -> str:
    """Where the pod is in its life."""
    if record.ending is Ending.DEADLINE_EXCEEDED:
        return "Running" if any(c.running for c in record.containers.values()) else "Failed"
    if init_failed(pod, record):
        return "Failed"
    states = [record.container(c.name) for c in pod.spec.containers]
    if not initialized(pod, record):
        # After a provider's restart, a main container that ran before still counts.
        return "Running" if any(s.current for s in states) else "Pending"
    if any(s.current is None for s in states):
        return "Pending" if record.ending is None else _ended(states)
    if any(s.running for s in states):
        return "Running"
    if restart_policy(pod) == "Always" and record.ending is None:
        return "Running"
    if all(s.current and s.current.succeeded for s in states):
        return "Succeeded"
    if restart_policy(pod) == "OnFailure" and record.ending is None:
        return "Running"
    return _ended(states)


def _ended(states: Iterable[ContainerRecord]) -> str:
    """Phase of a pod that is being deleted."""
    states = list(states)
    if any(s.running for s in states):
        return "Running"
    return "Succeeded" if all(s.current and s.current.succeeded for s in states) else "Failed"


def qos_class(pod: pod_pb2.Pod) -> str:
    """https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/"""
    if pod.status.qos_class:
        return pod.status.qos_class
    containers = [*pod.spec.containers, *pod.spec.init_containers]
    stated = [r for c in containers for r in (c.resources.limits, c.resources.requests)]
    if not any(name in ("cpu", "memory") for amounts in stated for name in amounts):
        return "BestEffort"
    guaranteed = all(
        name in c.resources.limits
        and (name not in c.resources.requests or c.resources.requests[name] == c.resources.limits[name])
        for c in containers
        for name in ("cpu", "memory")
    )
    return "Guaranteed" if guaranteed else "Burstable"


def timestamp(at: datetime) -> Timestamp:
    """Kubernetes' Time, which has whole seconds."""
    return Timestamp(seconds=int(at.timestamp()))


def _container(
    container: container_pb2.Container, record: PodRecord, first_reason: str, *, init: bool
) -> container_status_pb2.ContainerStatus:
    state = record.container(container.name)
    running = state.running
    done_init = init and not is_sidecar(container) and init_done(container, state)
    status = container_status_pb2.ContainerStatus(
        name=container.name,
        image=container.image,
        restart_count=state.restarts,
        started=running,
        ready=running or done_init,
    )
    current = state.current
    if current is not None:
        status.image = current.image
        status.image_id = current.image_id
        status.container_id = CONTAINER_ID_SCHEME + current.id
    if current is None or (state.waiting_reason and not running):
        status.state.waiting.reason = state.waiting_reason or first_reason
        status.state.waiting.message = state.waiting_message
        if current is not None:
            status.last_state.terminated.CopyFrom(_terminated(current))
        return status
    if running:
        status.state.running.started_at.CopyFrom(timestamp(current.started_at))
    else:
        status.state.terminated.CopyFrom(_terminated(current))
    if state.previous is not None:
        status.last_state.terminated.CopyFrom(_terminated(state.previous))
    return status


def _terminated(attempt: Attempt) -> container_status_pb2.ContainerStateTerminated:
    return container_status_pb2.ContainerStateTerminated(
        exit_code=attempt.exit_code,
        reason=attempt.reason,
        message=attempt.message,
        started_at=timestamp(attempt.started_at),
        finished_at=timestamp(attempt.finished_at or attempt.started_at),
        container_id=CONTAINER_ID_SCHEME + attempt.id,
    )


def _conditions(
    pod: pod_pb2.Pod, record: PodRecord, status: pod_pb2.PodStatus, now: datetime
) -> list[pod_pb2.PodCondition]:
    over = status.phase in ("Succeeded", "Failed")
    # A sidecar counts for readiness like a main container.
    counted = [
        *(s for c, s in zip(pod.spec.init_containers, status.init_container_statuses, strict=True) if is_sidecar(c)),
        *status.container_statuses,
    ]
    unready = [s.name for s in counted if not s.ready]
    uninitialized = [c.name for c in pod.spec.init_containers if not init_done(c, record.container(c.name))]
    if status.phase == "Succeeded":
        ready = ("False", "PodCompleted", "")
    elif status.phase == "Failed":
        ready = ("False", "PodFailed", "")
    elif unready:
        ready = ("False", "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    else:
        ready = ("True", "", "")
    if status.phase == "Succeeded":
        init = ("True", "PodCompleted", "")
    elif uninitialized:
        init = (
            "False",
            "ContainersNotInitialized",
            f"containers with incomplete status: [{' '.join(uninitialized)}]",
        )
    else:
        init = ("True", "", "")
    sandbox = "False" if over else "True"
    wanted = {
        "PodReadyToStartContainers": (sandbox, "", ""),
        "Initialized": init,
        "Ready": ready,
        "ContainersReady": ready,
        "PodScheduled": ("True", "", ""),
    }
    result = []
    for kind, (value, reason, message) in wanted.items():
        before = record.conditions.get(kind)
        if before is None or before[0] != value:
            record.conditions[kind] = before = (value, now)
        result.append(
            pod_pb2.PodCondition(
                type=kind,
                status=value,
                reason=reason,
                message=message,
                last_transition_time=timestamp(before[1]),
                observed_generation=pod.metadata.generation,
            )
        )
    # What others set on the pod (readiness gates, the scheduler) stays.
    result.extend(c for c in pod.status.conditions if c.type not in wanted)
    return result
