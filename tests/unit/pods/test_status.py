from datetime import timedelta

import pytest
from support.builders import FACTS, T0, attempt, container, pod
from wasmlet.pods.record import Attempt, Ending, PodRecord
from wasmlet.pods.status import build, phase, qos_class
from wasmlet_contract.k8s.core.v1 import pod_pb2


def conditions(status: pod_pb2.PodStatus) -> dict[str, str]:
    return {c.type: c.status for c in status.conditions}


@pytest.mark.parametrize(
    ("policy", "attempts", "expected"),
    [
        ("Always", [None, None], "Pending"),
        ("Always", [attempt(), None], "Pending"),
        ("Always", [attempt(), attempt()], "Running"),
        ("Always", [attempt(1), attempt(0)], "Running"),
        ("OnFailure", [attempt(1), attempt(0)], "Running"),
        ("OnFailure", [attempt(0), attempt(0)], "Succeeded"),
        ("Never", [attempt(0), attempt()], "Running"),
        ("Never", [attempt(0), attempt(0)], "Succeeded"),
        ("Never", [attempt(0), attempt(3)], "Failed"),
    ],
)
def test_phase(policy: str, attempts: list[Attempt | None], expected: str) -> None:
    record = PodRecord(T0)
    for name, current in zip("ab", attempts, strict=True):
        record.container(name).current = current
    assert phase(pod(container("a"), container("b"), policy=policy), record) == expected


def test_phase_while_and_after_init_containers() -> None:
    p, record = pod(policy="Never"), PodRecord(T0)
    p.spec.init_containers.append(container("i"))
    assert phase(p, record) == "Pending"
    record.container("i").begin(attempt(1))
    assert phase(p, record) == "Failed"


def test_a_deadline_fails_the_pod_with_its_reason() -> None:
    record = PodRecord(T0, ending=Ending.DEADLINE_EXCEEDED)
    record.container("web").begin(attempt(143))
    status = build(pod(), record, FACTS, T0)
    assert (status.phase, status.reason) == ("Failed", "DeadlineExceeded")
    assert status.message == "Pod was active on the node longer than the specified deadline"


def test_a_running_pod() -> None:
    record = PodRecord(T0)
    record.container("web").begin(attempt())
    status = build(pod(), record, FACTS, T0)
    assert (status.pod_ip, status.host_ip, status.start_time.ToDatetime(T0.tzinfo)) == ("10.1.0.7", "10.0.0.1", T0)
    assert set(conditions(status).values()) == {"True"}
    (web,) = status.container_statuses
    assert (web.ready, web.started, web.container_id, web.image_id) == (True, True, "wasmlet://c1", "sha256:0")
    assert web.state.HasField("running")


def test_a_new_pod_waits() -> None:
    status = build(pod(), PodRecord(T0), FACTS, T0)
    assert status.container_statuses[0].state.waiting.reason == "ContainerCreating"
    ready = next(c for c in status.conditions if c.type == "Ready")
    assert (ready.reason, ready.message) == ("ContainersNotReady", "containers with unready status: [web]")


def test_a_container_in_back_off_shows_why_it_ended() -> None:
    record = PodRecord(T0)
    state = record.container("web")
    state.begin(attempt(1, id="c1"))
    state.begin(attempt(2, id="c2"))
    state.wait("CrashLoopBackOff", "back-off 10s")
    (web,) = build(pod(), record, FACTS, T0).container_statuses
    assert web.state.waiting.reason == "CrashLoopBackOff"
    assert web.last_state.terminated.exit_code == 2
    assert (web.restart_count, web.ready) == (1, False)


def test_conditions_keep_the_time_of_their_last_change() -> None:
    record = PodRecord(T0)
    build(pod(), record, FACTS, T0)
    record.container("web").begin(attempt())
    later = T0 + timedelta(seconds=5)
    build(pod(), record, FACTS, later)
    status = build(pod(), record, FACTS, T0 + timedelta(seconds=9))
    changed = {c.type: c.last_transition_time.seconds for c in status.conditions}
    assert changed["Ready"] == int(later.timestamp())
    assert changed["PodScheduled"] == int(T0.timestamp())


@pytest.mark.parametrize(
    ("requests", "limits", "expected"),
    [
        ({}, {}, "BestEffort"),
        ({"cpu": "1"}, {}, "Burstable"),
        ({"cpu": "1", "memory": "1Gi"}, {"cpu": "1", "memory": "1Gi"}, "Guaranteed"),
        ({}, {"cpu": "1", "memory": "1Gi"}, "Guaranteed"),
        ({"cpu": "1"}, {"cpu": "2", "memory": "1Gi"}, "Burstable"),
        ({"ephemeral-storage": "1Gi"}, {}, "BestEffort"),
    ],
)
def test_qos_class(requests: dict[str, str], limits: dict[str, str], expected: str) -> None:
    c = container()
    for stated, amounts in ((c.resources.requests, requests), (c.resources.limits, limits)):
        for name, amount in amounts.items():
            stated[name].value = amount
    assert qos_class(pod(c)) == expected
