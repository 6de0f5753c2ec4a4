from collections.abc import Callable

import pytest
from support.builders import FACTS, container, pod
from wasmlet.pods.environment import ContainerConfigError, environment, hostname
from wasmlet.pods.references import References
from wasmlet_contract.k8s.core.v1 import container_pb2, pod_pb2
from wasmlet_contract.virtualkubelet.provider.v1 import references_pb2


def references(namespace: str = "default") -> References:
    message = references_pb2.PodReferences()
    config = message.config_maps.add()
    config.metadata.name, config.metadata.namespace = "settings", namespace
    config.data.update({"COLOUR": "blue", "bad=key": "x"})
    secret = message.secrets.add()
    secret.metadata.name, secret.metadata.namespace = "keys", namespace
    secret.data.update({"TOKEN": b"s3cret", "BINARY": b"\xff\x00z"})
    service = message.services.add()
    service.metadata.name, service.metadata.namespace = "data-base", namespace
    service.spec.cluster_ip = "10.96.0.9"
    service.spec.ports.add(name="sql-tls", port=5432, protocol="TCP")
    service.spec.ports.add(port=53, protocol="UDP")
    headless = message.services.add()
    headless.metadata.name, headless.metadata.namespace, headless.spec.cluster_ip = "headless", namespace, "None"
    master = message.services.add()
    master.metadata.name, master.metadata.namespace, master.spec.cluster_ip = "kubernetes", "default", "10.96.0.1"
    master.spec.ports.add(name="https", port=443, protocol="TCP")
    return References.of(message, "default")


class Resolver:
    """Resolves the environment of one container and keeps the warnings."""

    def __init__(self) -> None:
        self.pod = pod(container())
        self.pod.metadata.labels["app"] = "web"
        self.pod.metadata.annotations["note"] = 'two\nlines "quoted"'
        self.warnings: list[str] = []

    @property
    def container(self) -> container_pb2.Container:
        first: container_pb2.Container = self.pod.spec.containers[0]
        return first

    def __call__(self, given: References | None = None) -> dict[str, str]:
        return environment(
            self.pod,
            self.container,
            references() if given is None else given,
            FACTS,
            lambda reason, message: self.warnings.append(f"{reason}: {message}"),
        )


@pytest.fixture
def resolve() -> Resolver:
    return Resolver()


def test_later_values_may_refer_to_earlier_ones_and_to_services(resolve: Resolver) -> None:
    resolve.container.env.add(name="A", value="a")
    resolve.container.env.add(name="B", value="$(A)-$(C)-$(DATA_BASE_SERVICE_HOST)")
    resolve.container.env.add(name="C", value="c")
    assert resolve()["B"] == "a-$(C)-10.96.0.9"


def test_services_in_both_forms(resolve: Resolver) -> None:
    variables = resolve()
    assert variables["DATA_BASE_SERVICE_HOST"] == "10.96.0.9"
    assert variables["DATA_BASE_SERVICE_PORT"] == "5432"
    assert variables["DATA_BASE_SERVICE_PORT_SQL_TLS"] == "5432"
    assert variables["DATA_BASE_PORT"] == "tcp://10.96.0.9:5432"
    assert variables["DATA_BASE_PORT_53_UDP"] == "udp://10.96.0.9:53"
    assert variables["DATA_BASE_PORT_53_UDP_ADDR"] == "10.96.0.9"
    assert not any(name.startswith("HEADLESS") for name in variables)


def test_without_service_links_only_the_api_server_is_told(resolve: Resolver) -> None:
    resolve.pod.spec.enable_service_links = False
    variables = resolve()
    assert variables["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    assert "DATA_BASE_SERVICE_HOST" not in variables


def test_what_the_spec_says_wins_over_services(resolve: Resolver) -> None:
    resolve.container.env.add(name="DATA_BASE_SERVICE_HOST", value="mine")
    assert resolve()["DATA_BASE_SERVICE_HOST"] == "mine"


def test_env_from_with_prefix_skips_invalid_names(resolve: Resolver) -> None:
    resolve.container.env_from.add(prefix="P_").config_map_ref.local_object_reference.name = "settings"
    variables = resolve()
    assert variables["P_COLOUR"] == "blue"
    assert "P_bad=key" not in variables
    assert resolve.warnings[0].startswith(
        "InvalidEnvironmentVariableNames: Keys [P_bad=key] from the EnvFrom configmap"
    )


def test_env_wins_over_env_from(resolve: Resolver) -> None:
    resolve.container.env_from.add().secret_ref.local_object_reference.name = "keys"
    resolve.container.env.add(name="TOKEN", value="literal")
    assert resolve()["TOKEN"] == "literal"


def test_secret_bytes_pass_unchanged(resolve: Resolver) -> None:
    ref = resolve.container.env.add(name="X").value_from.secret_key_ref
    ref.local_object_reference.name, ref.key = "keys", "BINARY"
    assert resolve()["X"].encode("utf-8", "surrogateescape") == b"\xff\x00z"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "p"),
        ("metadata.namespace", "default"),
        ("metadata.uid", "u1"),
        ("metadata.labels['app']", "web"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['note']", 'two\nlines "quoted"'),
        ("metadata.annotations", 'note="two\\nlines \\"quoted\\""'),
        ("spec.nodeName", "node-1"),
        ("spec.serviceAccountName", "robot"),
        ("status.hostIP", "10.0.0.1"),
        ("status.podIP", "10.1.0.7"),
        ("status.podIPs", "10.1.0.7"),
    ],
)
def test_field_references(resolve: Resolver, path: str, value: str) -> None:
    resolve.pod.spec.service_account_name = "robot"
    resolve.container.env.add(name="X").value_from.field_ref.field_path = path
    assert resolve()["X"] == value


@pytest.mark.parametrize(
    ("resource", "divisor", "value"),
    [
        ("limits.cpu", "", "1"),
        ("limits.cpu", "1m", "500"),
        ("requests.memory", "1Ki", "1025"),
        ("limits.memory", "1Mi", "1024"),
        ("requests.cpu", "", "0"),
    ],
)
def test_resource_references(resolve: Resolver, resource: str, divisor: str, value: str) -> None:
    resolve.container.resources.limits["cpu"].value = "500m"
    resolve.container.resources.requests["memory"].value = str(1024 * 1024 + 1)
    ref = resolve.container.env.add(name="X").value_from.resource_field_ref
    ref.resource, ref.divisor.value = resource, divisor
    assert resolve()["X"] == value


def missing_key(c: container_pb2.Container, optional: bool) -> None:
    ref = c.env.add(name="X").value_from.config_map_key_ref
    ref.local_object_reference.name, ref.key, ref.optional = "settings", "absent", optional


def missing_map(c: container_pb2.Container, optional: bool) -> None:
    ref = c.env_from.add().config_map_ref
    ref.local_object_reference.name, ref.optional = "absent", optional


def missing_secret(c: container_pb2.Container, optional: bool) -> None:
    ref = c.env.add(name="X").value_from.secret_key_ref
    ref.local_object_reference.name, ref.key, ref.optional = "absent", "k", optional


@pytest.mark.parametrize(
    ("add", "message", "event"),
    [
        (missing_key, "couldn't find key absent in ConfigMap default/settings", "ConfigMapKeyNotFound"),
        (missing_map, 'configmap "absent" not found', "ConfigMapNotFound"),
        (missing_secret, 'secret "absent" not found', "SecretNotFound"),
    ],
)
def test_missing_references(
    resolve: Resolver, add: Callable[[container_pb2.Container, bool], None], message: str, event: str
) -> None:
    add(resolve.container, True)
    assert "X" not in resolve()
    assert resolve.warnings == [f"Optional{event}: {message}"]
    add(resolve.container, False)
    with pytest.raises(ContainerConfigError) as error:
        resolve()
    assert (str(error.value), error.value.event_reason) == (message, f"Mandatory{event}")


def test_objects_of_another_namespace_do_not_count(resolve: Resolver) -> None:
    missing_key(resolve.container, False)
    with pytest.raises(ContainerConfigError, match='configmap "settings" not found'):
        resolve(references("other"))


@pytest.mark.parametrize("path", ["metadata.labels['", "spec.containers", "status.phase", ""])
def test_unknown_fields_are_refused(resolve: Resolver, path: str) -> None:
    resolve.container.env.add(name="X").value_from.field_ref.field_path = path
    with pytest.raises(ContainerConfigError, match="unsupported fieldPath"):
        resolve()


def test_hostname_is_cut_to_what_a_host_may_be_called() -> None:
    p: pod_pb2.Pod = pod(name="a" * 62 + ".b")
    assert hostname(p) == "a" * 62
    p.spec.hostname = "chosen"
    assert hostname(p) == "chosen"
