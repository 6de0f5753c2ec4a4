from collections.abc import Callable

import pytest
from support.builders import container, pod
from wasmlet.pods.validation import MAX_POD_BYTES, InvalidRequestError, validate
from wasmlet_contract.k8s.core.v1 import pod_pb2


def violations(p: pod_pb2.Pod) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as error:
        validate(p)
    return {violation.field: violation.description for violation in error.value.violations}


def test_a_plain_pod_is_fine() -> None:
    validate(pod())


def change(path: str, value: object) -> Callable[[pod_pb2.Pod], None]:
    def apply(p: pod_pb2.Pod) -> None:
        target: object = p
        *parents, last = path.split(".")
        for name in parents:
            target = getattr(target, name)
        setattr(target, last, value)

    return apply


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("metadata.name", "", "pod.metadata.name"),
        ("metadata.name", "Upper", "pod.metadata.name"),
        ("metadata.name", "a" * 254, "pod.metadata.name"),
        ("metadata.namespace", "", "pod.metadata.namespace"),
        ("metadata.namespace", "../etc", "pod.metadata.namespace"),
        ("metadata.uid", "", "pod.metadata.uid"),
        ("metadata.uid", "../../etc", "pod.metadata.uid"),
        ("metadata.uid", ".", "pod.metadata.uid"),
        ("spec.restart_policy", "Sometimes", "pod.spec.restartPolicy"),
        ("spec.active_deadline_seconds", 0, "pod.spec.activeDeadlineSeconds"),
        ("spec.termination_grace_period_seconds", -1, "pod.spec.terminationGracePeriodSeconds"),
    ],
)
def test_names_the_field_that_is_wrong(path: str, value: object, field: str) -> None:
    p = pod()
    change(path, value)(p)
    assert list(violations(p)) == [field]


def test_a_pod_without_containers() -> None:
    p = pod()
    del p.spec.containers[:]
    assert violations(p) == {"pod.spec.containers": "is required: a pod has at least one container"}


def test_duplicate_names_across_init_and_main_containers() -> None:
    p = pod(container("a"), container("a"))
    p.spec.init_containers.append(container("a"))
    assert list(violations(p)) == ["pod.spec.containers[0].name", "pod.spec.containers[1].name"]


def test_every_violation_is_told_at_once() -> None:
    p = pod(container("Bad"), container("ok", image=""))
    p.spec.containers[1].env.add(name="A=B")
    p.spec.containers[1].resources.limits["cpu"].value = "many"
    p.spec.containers[1].resources.requests["memory"].value = "-1Gi"
    p.spec.containers[1].volume_mounts.add(name="none", mount_path="/x")
    found = violations(p)
    assert list(found) == [
        "pod.spec.containers[0].name",
        "pod.spec.containers[1].image",
        "pod.spec.containers[1].env[0].name",
        "pod.spec.containers[1].volumeMounts[0].name",
        "pod.spec.containers[1].resources.limits[cpu]",
        "pod.spec.containers[1].resources.requests[memory]",
    ]
    assert '"many" is not a quantity' in found["pod.spec.containers[1].resources.limits[cpu]"]


def test_a_pod_larger_than_an_api_object() -> None:
    p = pod()
    p.metadata.annotations["large"] = "x" * MAX_POD_BYTES
    assert list(violations(p)) == ["pod"]
