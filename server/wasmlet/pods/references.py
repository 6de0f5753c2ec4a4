"""The objects that a pod refers to, found by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from wasmlet_contract.k8s.core.v1 import config_pb2, meta_pb2, service_pb2
from wasmlet_contract.virtualkubelet.provider.v1 import references_pb2


class _Named(Protocol):
    @property
    def metadata(self) -> meta_pb2.ObjectMeta: ...


_T = TypeVar("_T", bound=_Named)


@dataclass(frozen=True, slots=True)
class References:
    """What came along with a pod. An object that is not here does not exist in the cluster."""

    config_maps: dict[str, config_pb2.ConfigMap] = field(default_factory=dict)
    secrets: dict[str, config_pb2.Secret] = field(default_factory=dict)
    services: tuple[service_pb2.Service, ...] = ()

    @classmethod
    def of(cls, message: references_pb2.PodReferences, namespace: str) -> References:
        """Index the references of a pod of `namespace`; ConfigMaps and Secrets of other namespaces do not count."""
        return cls(
            config_maps=_by_name(message.config_maps, namespace),
            secrets=_by_name(message.secrets, namespace),
            services=tuple(message.services),
        )


def _by_name(objects: Iterable[_T], namespace: str) -> dict[str, _T]:
    return {o.metadata.name: o for o in objects if o.metadata.namespace in ("", namespace)}
