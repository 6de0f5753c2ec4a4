"""The node as Kubernetes sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from wasmlet_contract.k8s.core.v1 import node_pb2

from wasmlet.pods.status import timestamp
from wasmlet.stats.machine import Machine

# The Kubernetes release whose kubelet this node behaves like.
KUBERNETES_VERSION = "v1.35.4"
# Krustlet's architecture, which its users' manifests select and tolerate: https://docs.krustlet.dev/topics/architecture/
ARCHITECTURE = "wasm32-wasi"
ARCH_LABEL = "kubernetes.io/arch"
DEFAULT_TAINTS = tuple(f"{ARCH_LABEL}={ARCHITECTURE}:{effect}" for effect in ("NoSchedule", "NoExecute"))
TAINT_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint, written `key[=value]:Effect`."""

    key: str
    value: str
    effect: str

    @classmethod
    def parse(cls, text: str) -> Taint:
        """
        Raises:
            ValueError: the text is not a taint.
        """
        pair, _, effect = text.rpartition(":")
        key, _, value = pair.partition("=")
        if not key or effect not in TAINT_EFFECTS:
            raise ValueError(
                f'"{text}" is not a taint: expected key=value:Effect with one of {", ".join(TAINT_EFFECTS)}'
            )
        return cls(key, value, effect)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What an operator decides about the node."""

    name: str
    address: str
    labels: Mapping[str, str]
    taints: Sequence[Taint]
    max_pods: int
    version: str
    runtime_version: str


def capacity(machine: Machine, settings: NodeSettings) -> dict[str, str]:
    """What the node has, by resource name."""
    return {
        "cpu": str(machine.cpus),
        "memory": f"{machine.memory // 1024}Ki",
        "ephemeral-storage": f"{machine.disk // 1024}Ki",
        "pods": str(settings.max_pods),
    }


def describe(machine: Machine, settings: NodeSettings, started_at: datetime) -> node_pb2.Node:
    """The node object that an agent registers."""
    node = node_pb2.Node()
    node.metadata.name = settings.name
    node.metadata.labels.update(
        {
            ARCH_LABEL: ARCHITECTURE,
            "kubernetes.io/os": "linux",
            "kubernetes.io/hostname": settings.name,
            **settings.labels,
        }
    )
    for taint in settings.taints:
        node.spec.taints.add(key=taint.key, value=taint.value, effect=taint.effect)
    for name, amount in capacity(machine, settings).items():
        node.status.capacity[name].value = amount
        node.status.allocatable[name].value = amount
    node.status.addresses.add(type="InternalIP", address=settings.address)
    node.status.addresses.add(type="Hostname", address=settings.name)
    node.status.conditions.extend(_conditions(started_at))
    info = node.status.node_info
    info.machine_id, info.system_uuid, info.boot_id = machine.machine_id, machine.system_uuid, machine.boot_id
    info.kernel_version, info.os_image = machine.kernel, machine.os_image
    info.container_runtime_version = f"wasmtime://{settings.runtime_version}"
    info.kubelet_version = f"{KUBERNETES_VERSION}-wasmlet-{settings.version}"
    info.operating_system, info.architecture = "linux", ARCHITECTURE
    return node


def _conditions(started_at: datetime) -> list[node_pb2.NodeCondition]:
    stated = [
        ("Ready", "True", "KubeletReady", "wasmlet is ready to run pods"),
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "wasmlet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "wasmlet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "wasmlet has sufficient PID available"),
    ]
    at = timestamp(started_at)
    return [
        node_pb2.NodeCondition(
            type=kind,
            status=value,
            reason=reason,
            message=message,
            last_heartbeat_time=at,
            last_transition_time=at,
        )
        for kind, value, reason, message in stated
    ]
