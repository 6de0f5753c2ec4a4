"""A container's environment: every source that a pod's spec knows, in the kubelet's order.

https://kubernetes.io/docs/tasks/inject-data-application/
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from wasmlet_contract.k8s.core.v1 import container_pb2, env_pb2, pod_pb2, service_pb2

from wasmlet.pods import quantity
from wasmlet.pods.expansion import expand
from wasmlet.pods.references import References

MASTER_SERVICE = "kubernetes"
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['(.*)'\]")


class ContainerConfigError(Exception):
    """The container cannot be configured as its spec asks: reason CreateContainerConfigError.

    `event_reason` names the event that tells of it beside the kubelet's own `Failed`.
    """

    def __init__(self, message: str, event_reason: str = "") -> None:
        super().__init__(message)
        self.event_reason = event_reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """What downward API fields are answered from, beside the pod itself."""

    node_name: str
    host_ips: tuple[str, ...]
    pod_ips: tuple[str, ...]
    # Allocatable of the node by resource name: the default where a container sets no limit.
    allocatable: Mapping[str, str]


Warn = Callable[[str, str], None]
"""Called with the reason and message of an event about something optional that is missing."""


def environment(
    pod: pod_pb2.Pod, container: container_pb2.Container, references: References, facts: PodFacts, warn: Warn
) -> dict[str, str]:
    """Resolve `envFrom`, `env` and the service variables of a container.

    Raises:
        ContainerConfigError: something that is not optional is missing, or a field is not supported.
    """
    services = _service_variables(pod, references)
    result: dict[str, str] = {"HOSTNAME": hostname(pod)}
    for source in container.env_from:
        result.update(_env_from(pod, source, references, warn))
    # A value may refer to what stands before it; service variables are the last resort.
    for variable in container.env:
        if variable.HasField("value_from"):
            value = _value_from(pod, container, variable.value_from, references, facts, warn)
            if value is None:
                continue
        else:
            value = expand(variable.value, services | result)
        result[variable.name] = value
    return services | result


def hostname(pod: pod_pb2.Pod) -> str:
    """The name that the pod knows itself by: `spec.hostname`, else its own name, at most 63 characters."""
    return pod.spec.hostname or pod.metadata.name[:63].rstrip("-.")


def field_value(pod: pod_pb2.Pod, path: str, facts: PodFacts) -> str:
    """The value of a downward API field path.

    Raises:
        ContainerConfigError: there is no such field.
    """
    subscript = _SUBSCRIPT.fullmatch(path)
    if subscript:
        of, key = subscript.groups()
        return (pod.metadata.labels if of == "labels" else pod.metadata.annotations).get(key, "")
    values: dict[str, Callable[[], str]] = {
        "metadata.name": lambda: pod.metadata.name,
        "metadata.namespace": lambda: pod.metadata.namespace,
        "metadata.uid": lambda: pod.metadata.uid,
        "metadata.labels": lambda: _lines(pod.metadata.labels),
        "metadata.annotations": lambda: _lines(pod.metadata.annotations),
        "spec.nodeName": lambda: pod.spec.node_name or facts.node_name,
        "spec.serviceAccountName": lambda: pod.spec.service_account_name,
        "status.hostIP": lambda: facts.host_ips[0],
        "status.hostIPs": lambda: ",".join(facts.host_ips),
        "status.podIP": lambda: facts.pod_ips[0],
        "status.podIPs": lambda: ",".join(facts.pod_ips),
    }
    if path not in values:
        raise ContainerConfigError(f"unsupported fieldPath: {path}")
    return values[path]()


def resource_value(pod: pod_pb2.Pod, container_name: str, resource: str, divisor: str, facts: PodFacts) -> str:
    """The value of a resourceFieldRef, a whole number rounded up.

    Raises:
        ContainerConfigError: no such container or resource.
    """
    containers = [c for c in (*pod.spec.init_containers, *pod.spec.containers) if c.name == container_name]
    if not containers:
        raise ContainerConfigError(f"container {container_name} not found")
    section, _, name = resource.partition(".")
    if section not in ("limits", "requests") or name not in ("cpu", "memory", "ephemeral-storage"):
        raise ContainerConfigError(f"unsupported container resource : {resource}")
    resources = containers[0].resources
    stated = resources.limits if section == "limits" else resources.requests
    if name in stated:
        amount = quantity.parse(stated[name].value)
    elif section == "limits":
        amount = quantity.parse(facts.allocatable.get(name, "0"))
    else:
        amount = Decimal(0)
    unit = quantity.parse(divisor) if divisor else Decimal(0)
    return str(quantity.divide(amount, unit or Decimal(1)))


def _env_from(pod: pod_pb2.Pod, source: env_pb2.EnvFromSource, references: References, warn: Warn) -> dict[str, str]:
    data: dict[str, str]
    if source.HasField("config_map_ref"):
        name, optional = source.config_map_ref.local_object_reference.name, source.config_map_ref.optional
        config_map = references.config_maps.get(name)
        if config_map is None:
            _missing("ConfigMap", f'configmap "{name}" not found', optional, warn)
            return {}
        data = dict(config_map.data)
    else:
        name, optional = source.secret_ref.local_object_reference.name, source.secret_ref.optional
        secret = references.secrets.get(name)
        if secret is None:
            _missing("Secret", f'secret "{name}" not found', optional, warn)
            return {}
        data = {key: _text(value) for key, value in secret.data.items()}
    named = {source.prefix + key: value for key, value in data.items()}
    invalid = sorted(key for key in named if not valid_name(key))
    if invalid:
        kind = "configmap" if source.HasField("config_map_ref") else "secret"
        warn(
            "InvalidEnvironmentVariableNames",
            f"Keys [{', '.join(invalid)}] from the EnvFrom {kind} {pod.metadata.namespace}/{name} were skipped since "
            "they are considered invalid environment variable names.",
        )
    return {key: value for key, value in named.items() if valid_name(key)}


def valid_name(name: str) -> bool:
    """Whether a name can stand in an environment: printable ASCII without `=`, as the API server allows since 1.34."""
    return bool(name) and all(" " <= c <= "~" and c != "=" for c in name)


def _value_from(
    pod: pod_pb2.Pod,
    container: container_pb2.Container,
    source: env_pb2.EnvVarSource,
    references: References,
    facts: PodFacts,
    warn: Warn,
) -> str | None:
    namespace = pod.metadata.namespace
    if source.HasField("field_ref"):
        return field_value(pod, source.field_ref.field_path, facts)
    if source.HasField("resource_field_ref"):
        ref = source.resource_field_ref
        return resource_value(pod, ref.container_name or container.name, ref.resource, ref.divisor.value, facts)
    if source.HasField("config_map_key_ref"):
        selector = source.config_map_key_ref
        name = selector.local_object_reference.name
        config_map = references.config_maps.get(name)
        if config_map is None:
            _missing("ConfigMap", f'configmap "{name}" not found', selector.optional, warn)
            return None
        if selector.key not in config_map.data:
            message = f"couldn't find key {selector.key} in ConfigMap {namespace}/{name}"
            _missing("ConfigMapKey", message, selector.optional, warn)
            return None
        return config_map.data[selector.key]
    if source.HasField("secret_key_ref"):
        key_ref = source.secret_key_ref
        name = key_ref.local_object_reference.name
        secret = references.secrets.get(name)
        if secret is None:
            _missing("Secret", f'secret "{name}" not found', key_ref.optional, warn)
            return None
        if key_ref.key not in secret.data:
            message = f"couldn't find key {key_ref.key} in Secret {namespace}/{name}"
            _missing("SecretKey", message, key_ref.optional, warn)
            return None
        return _text(secret.data[key_ref.key])
    raise ContainerConfigError("valueFrom has no source that this node supports")


def _missing(what: str, message: str, optional: bool, warn: Warn) -> None:
    if not optional:
        raise ContainerConfigError(message, f"Mandatory{what}NotFound")
    warn(f"Optional{what}NotFound", message)


def _text(value: bytes) -> str:
    # Arbitrary bytes pass through an environment on Linux; surrogateescape keeps them as they are.
    return value.decode("utf-8", "surrogateescape")


def _lines(pairs: Mapping[str, str]) -> str:
    return "\n".join(f"{key}={_quote(value)}" for key, value in sorted(pairs.items()))


def _quote(value: str) -> str:
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(c, c) for c in value) + '"'


def _service_variables(pod: pod_pb2.Pod, references: References) -> dict[str, str]:
    links = pod.spec.enable_service_links if pod.spec.HasField("enable_service_links") else True
    result: dict[str, str] = {}
    for service in references.services:
        namespace = service.metadata.namespace or pod.metadata.namespace
        master = namespace == "default" and service.metadata.name == MASTER_SERVICE
        if master or (links and namespace == pod.metadata.namespace):
            result.update(_variables_of(service))
    return result


def _variables_of(service: service_pb2.Service) -> dict[str, str]:
    """The variables of one Service, in Kubernetes' own form and in that of Docker links.

    https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
    """
    address = service.spec.cluster_ip
    if address in ("", "None") or not service.spec.ports:
        return {}
    name = service.metadata.name.upper().replace("-", "_")
    host = f"[{address}]" if ":" in address else address
    first = service.spec.ports[0]
    result = {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": str(first.port),
        f"{name}_PORT": f"{(first.protocol or 'TCP').lower()}://{host}:{first.port}",
    }
    for port in service.spec.ports:
        protocol = port.protocol or "TCP"
        if port.name:
            result[f"{name}_SERVICE_PORT_{port.name.upper().replace('-', '_')}"] = str(port.port)
        prefix = f"{name}_PORT_{port.port}_{protocol.upper()}"
        result[prefix] = f"{protocol.lower()}://{host}:{port.port}"
        result[f"{prefix}_PROTO"] = protocol.lower()
        result[f"{prefix}_PORT"] = str(port.port)
        result[f"{prefix}_ADDR"] = address
    return result
