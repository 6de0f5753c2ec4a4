from datetime import datetime, timedelta

import pytest
from support.builders import T0, attempt, container, pod
from wasmlet.pods.lifecycle import plan
from wasmlet.pods.record import Ending, PodRecord
from wasmlet_contract.k8s.core.v1 import pod_pb2


def starts(p: pod_pb2.Pod, record: PodRecord, now: datetime = T0) -> list[str]:
    return [c.name for c in plan(p, record, now).start]


def test_starts_all_containers_of_a_new_pod_in_order() -> None:
    assert starts(pod(container("b"), container("a")), PodRecord(T0)) == ["b", "a"]


@pytest.mark.parametrize(
    ("policy", "code", "again"),
    [
        ("Always", 0, True),
        ("Always", 1, True),
        ("OnFailure", 0, False),
        ("OnFailure", 1, True),
        ("Never", 0, False),
        ("Never", 1, False),
    ],
)
def test_restarts_by_policy(policy: str, code: int, again: bool) -> None:
    record = PodRecord(T0)
    record.container("web").begin(attempt(code))
    assert starts(pod(policy=policy), record) == (["web"] if again else [])


def test_waits_for_the_back_off() -> None:
    record = PodRecord(T0)
    state = record.container("web")
    state.restart_backoff.tried(T0, T0)
    state.begin(attempt(1, finished=T0 + timedelta(seconds=1)))
    waiting = plan(pod(), record, T0 + timedelta(seconds=2))
    assert waiting.start == []
    assert waiting.back_off == {"web": timedelta(seconds=10)}
    assert waiting.wake_at == T0 + timedelta(seconds=11)
    assert starts(pod(), record, T0 + timedelta(seconds=11)) == ["web"]


def test_the_active_deadline_ends_the_pod() -> None:
    p, record = pod(), PodRecord(T0)
    p.spec.active_deadline_seconds = 5
    record.container("web").begin(attempt())
    assert plan(p, record, T0).wake_at == T0 + timedelta(seconds=5)
    assert plan(p, record, T0 + timedelta(seconds=5)).end is Ending.DEADLINE_EXCEEDED


def test_the_active_deadline_leaves_a_finished_pod_alone() -> None:
    p, record = pod(policy="Never"), PodRecord(T0)
    p.spec.active_deadline_seconds = 5
    record.container("web").begin(attempt(0))
    assert plan(p, record, T0 + timedelta(hours=1)).end is None


def test_init_containers_go_one_by_one_before_the_others() -> None:
    p, record = pod(), PodRecord(T0)
    p.spec.init_containers.extend([container("i1"), container("i2")])
    assert starts(p, record) == ["i1"]
    record.container("i1").begin(attempt())
    assert starts(p, record) == []
    record.container("i1").current = attempt(0)
    assert starts(p, record) == ["i2"]
    record.container("i2").begin(attempt(0))
    assert starts(p, record) == ["web"]


@pytest.mark.parametrize(("policy", "again"), [("Always", True), ("OnFailure", True), ("Never", False)])
def test_a_failed_init_container_is_repeated_unless_the_policy_is_never(policy: str, again: bool) -> None:
    p, record = pod(policy=policy), PodRecord(T0)
    p.spec.init_containers.append(container("i1"))
    record.container("i1").begin(attempt(1))
    assert starts(p, record) == (["i1"] if again else [])


def test_sidecars_start_before_and_stop_after_the_main_containers() -> None:
    p, record = pod(policy="Never"), PodRecord(T0)
    p.spec.init_containers.extend([container("s1", restart_policy="Always"), container("s2", restart_policy="Always")])
    assert starts(p, record) == ["s1"]
    for name in ("s1", "s2", "web"):
        record.container(name).begin(attempt(id=name))
    assert plan(p, record, T0).stop == []
    record.container("web").current = attempt(0)
    assert plan(p, record, T0).stop == ["s2"]
    record.container("s2").current = attempt(143)
    assert plan(p, record, T0).stop == ["s1"]


def test_an_ending_pod_stops_its_containers_and_starts_none() -> None:
    p, record = pod(container("a"), container("b")), PodRecord(T0)
    record.container("a").begin(attempt())
    record.ending = Ending.DELETED
    ending = plan(p, record, T0)
    assert (ending.start, ending.stop) == ([], ["a"])
