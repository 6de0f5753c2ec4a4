"""What a pod must look like to be taken over: the part of the API server's validation that this node depends on.

A well-formed pod that cannot run is accepted, and says so in its status; see design decisions in README.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from wasmlet_contract.k8s.core.v1 import container_pb2, pod_pb2, resources_pb2

from wasmlet.pods import quantity

# etcd takes no larger request, so no API server holds a larger object.
MAX_POD_BYTES = 3 * 512 * 1024

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"(?=.{{1,253}}$){_LABEL.pattern}(\.{_LABEL.pattern})*")
# A UID becomes a folder's name.
_UID = re.compile(r"[A-Za-z0-9][-._A-Za-z0-9]{0,127}")
_LABEL_RULE = (
    "must be a DNS label: at most 63 lower-case letters, digits and `-`, beginning and ending with a letter or digit"
)
_SUBDOMAIN_RULE = "must be a DNS subdomain: lower-case letters, digits, `-` and `.`, at most 253 characters"
RESTART_POLICIES = ("Always", "OnFailure", "Never")


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that is wrong: its path as in a manifest, and what is wrong with it."""

    field: str
    description: str


class InvalidRequestError(Exception):
    """A request that cannot be understood; loses nothing, changes nothing."""

    def __init__(self, violations: Iterable[Violation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in self.violations))


def validate(pod: pod_pb2.Pod) -> None:
    """Check a pod that came with a request.

    Raises:
        InvalidRequestError: with every violation found, not only the first.
    """
    size = pod.ByteSize()
    if size > MAX_POD_BYTES:
        raise InvalidRequestError(
            [Violation("pod", f"is {size} bytes large; Kubernetes holds objects up to {MAX_POD_BYTES}")]
        )
    violations = [*_metadata(pod), *_spec(pod.spec)]
    if violations:
        raise InvalidRequestError(violations)


def _metadata(pod: pod_pb2.Pod) -> Iterator[Violation]:
    meta = pod.metadata
    yield from _matches("pod.metadata.namespace", meta.namespace, _LABEL, _LABEL_RULE)
    yield from _matches("pod.metadata.name", meta.name, _SUBDOMAIN, _SUBDOMAIN_RULE)
    yield from _matches("pod.metadata.uid", meta.uid, _UID, "must be letters, digits, `-`, `.` and `_`, at most 128")


def _matches(field: str, value: str, form: re.Pattern[str], rule: str) -> Iterator[Violation]:
    if not value:
        yield Violation(field, "is required")
    elif not form.fullmatch(value):
        yield Violation(field, f'"{value[:64]}" {rule}')


def _spec(spec: pod_pb2.PodSpec) -> Iterator[Violation]:
    if not spec.containers:
        yield Violation("pod.spec.containers", "is required: a pod has at least one container")
    if spec.restart_policy and spec.restart_policy not in RESTART_POLICIES:
        yield Violation(
            "pod.spec.restartPolicy", f'"{spec.restart_policy}" must be one of {", ".join(RESTART_POLICIES)}'
        )
    if spec.HasField("active_deadline_seconds") and spec.active_deadline_seconds < 1:
        yield Violation("pod.spec.activeDeadlineSeconds", f"{spec.active_deadline_seconds} must be at least 1")
    if spec.HasField("termination_grace_period_seconds") and spec.termination_grace_period_seconds < 0:
        yield Violation(
            "pod.spec.terminationGracePeriodSeconds",
            f"{spec.termination_grace_period_seconds} must not be negative",
        )
    volumes = {volume.name for volume in spec.volumes}
    seen: set[str] = set()
    for path, container in chain(_paths("initContainers", spec.init_containers), _paths("containers", spec.containers)):
        yield from _container(path, container, volumes)
        if container.name in seen:
            yield Violation(f"{path}.name", f'"{container.name}" is the name of another container of this pod')
        seen.add(container.name)


def _paths(field: str, containers: Iterable[container_pb2.Container]) -> Iterator[tuple[str, container_pb2.Container]]:
    for index, container in enumerate(containers):
        yield f"pod.spec.{field}[{index}]", container


def _container(path: str, container: container_pb2.Container, volumes: set[str]) -> Iterator[Violation]:
    yield from _matches(f"{path}.name", container.name, _LABEL, _LABEL_RULE)
    if not container.image:
        yield Violation(f"{path}.image", "is required")
    for index, variable in enumerate(container.env):
        field = f"{path}.env[{index}].name"
        if not variable.name:
            yield Violation(field, "is required")
        elif "=" in variable.name or "\0" in variable.name:
            yield Violation(field, f'"{variable.name[:64]}" must not contain `=` or NUL')
        divisor = variable.value_from.resource_field_ref.divisor.value
        if divisor:
            yield from _quantity(f"{path}.env[{index}].valueFrom.resourceFieldRef.divisor", divisor)
    for index, mount in enumerate(container.volume_mounts):
        if mount.name not in volumes:
            yield Violation(f"{path}.volumeMounts[{index}].name", f'"{mount.name}" is not a volume of this pod')
        if not mount.mount_path or ":" in mount.mount_path:
            yield Violation(f"{path}.volumeMounts[{index}].mountPath", "is required and must not contain `:`")
    yield from _resources(f"{path}.resources", container.resources)


def _resources(path: str, resources: resources_pb2.ResourceRequirements) -> Iterator[Violation]:
    for section, amounts in (("limits", resources.limits), ("requests", resources.requests)):
        for name in sorted(amounts):
            yield from _quantity(f"{path}.{section}[{name}]", amounts[name].value)


def _quantity(field: str, text: str) -> Iterator[Violation]:
    try:
        value = quantity.parse(text)
    except ValueError as error:
        yield Violation(field, str(error))
        return
    if value < 0:
        yield Violation(field, f'"{text}" must not be negative')
