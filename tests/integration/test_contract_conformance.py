"""The messages of k8s.core.v1 are wire-compatible with Kubernetes' own.

They are compared with the sources in the Go modules k8s.io/api and k8s.io/apimachinery, at the version that
client/node/go.mod names: generated.proto has numbers, types, labels and JSON names, the Go structs presence.
"""

import json
import pkgutil
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from wasmlet_contract.k8s.core import v1

GO_MODULE = Path(__file__).parents[2] / "client" / "node"
# Where the counterparts of our messages are; the first that has a name counts.
UPSTREAM = (
    "k8s.io/api/core/v1",
    "k8s.io/apimachinery/pkg/apis/meta/v1",
    "k8s.io/apimachinery/pkg/util/intstr",
)
# Kubernetes' type, and the well-known one that stands for it: the same bytes, and the same text in JSON.
STANDS_FOR = {"Quantity": "StringValue", "Time": "Timestamp", "MicroTime": "Timestamp"}
SCALARS: dict[int, str] = {
    number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """All that decides how a field is written, in bytes and in JSON."""

    number: int
    json_name: str
    type: str
    packed: bool


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the two modules lie as their protos import each other."""
    if shutil.which("go") is None:
        pytest.fail("Go is not installed: Kubernetes' own definitions come from its module cache.")
    command = ["go", "mod", "download", "-json", "k8s.io/api", "k8s.io/apimachinery"]
    download = subprocess.run(command, cwd=GO_MODULE, capture_output=True, text=True)
    assert download.returncode == 0, download.stdout + download.stderr
    root = tmp_path_factory.mktemp("upstream")
    for text in re.findall(r"^\{.*?^\}", download.stdout, re.MULTILINE | re.DOTALL):
        module = json.loads(text)
        link = root / module["Path"]
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(module["Dir"])
    return root


@pytest.fixture(scope="module")
def upstream(sources: Path) -> dict[str, Descriptor]:
    """Kubernetes' messages by name."""
    compiled = sources / "upstream.binpb"
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{sources}", "--include_imports", f"-o{compiled}"]
    subprocess.run([*protoc, "k8s.io/api/core/v1/generated.proto"], check=True)
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes()).file:
        pool.Add(file)
    messages: dict[str, Descriptor] = {}
    for folder in reversed(UPSTREAM):
        messages |= pool.FindFileByName(f"{folder}/generated.proto").message_types_by_name
    return messages


@pytest.fixture(scope="module")
def go_pointers(sources: Path) -> dict[tuple[str, int], bool]:
    """Whether the Go field is a pointer, by struct and field number. Embedded structs are left out."""
    pointers: dict[tuple[str, int], bool] = {}
    for folder in reversed(UPSTREAM):
        code = "\n".join(path.read_text() for path in (sources / folder).glob("*.go"))
        for struct in re.finditer(r"^type (\w+) struct \{$(.*?)^\}$", code, re.MULTILINE | re.DOTALL):
            fields = re.finditer(r'^\t\w+ +(\*?)\S+ +`.*protobuf:"\w+,(\d+),', struct[2], re.MULTILINE)
            pointers |= {(struct[1], int(field[2])): field[1] == "*" for field in fields}
    return pointers


def declared() -> list[Descriptor]:
    """Every message of k8s.core.v1, from the generated code."""
    names = [module.name for module in pkgutil.iter_modules(v1.__path__)]
    files = [import_module(f"{v1.__name__}.{name}").DESCRIPTOR for name in names if name.endswith("_pb2")]
    return [message for file in files for message in file.message_types_by_name.values()]


def type_of(field: FieldDescriptor) -> str:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        key, value = message.fields
        return f"map<{type_of(key)}, {type_of(value)}>"
    label = "repeated " if field.is_repeated else ""
    if message is not None:
        return label + STANDS_FOR.get(message.name, message.name)
    return label + SCALARS[field.type]


def wire(field: FieldDescriptor, json_name: str) -> Wire:
    return Wire(number=field.number, json_name=json_name, type=type_of(field), packed=field.is_packed)


def test_the_messages_the_contract_needs_are_declared() -> None:
    names = {message.name for message in declared()}
    roots = {"Pod", "PodStatus", "ConfigMap", "Secret", "Service", "Node", "Event", "ObjectReference"}
    assert roots | {"PersistentVolume", "PersistentVolumeClaim", "IntOrString"} <= names
    assert len(names) == len(declared()), "a message is declared twice"


@pytest.mark.parametrize("message", declared(), ids=lambda message: message.name)
def test_every_field_is_written_as_kubernetes_writes_it(message: Descriptor, upstream: dict[str, Descriptor]) -> None:
    assert message.name in upstream, f"Kubernetes has no message {message.name}"
    # Kubernetes names its protobuf fields as its JSON does, so json_name below is what it must be.
    theirs = {wire(field, field.name) for field in upstream[message.name].fields}
    ours = {wire(field, field.json_name) for field in message.fields}
    assert ours - theirs == set(), "declared differently from Kubernetes"
    assert theirs - ours == set(), "Kubernetes has fields that are not declared"


@pytest.mark.parametrize("message", declared(), ids=lambda message: message.name)
def test_a_scalar_is_optional_where_go_has_a_pointer(
    message: Descriptor, go_pointers: dict[tuple[str, int], bool]
) -> None:
    scalars = [field for field in message.fields if field.message_type is None and not field.is_repeated]
    assert {field.name: field.has_presence for field in scalars} == {
        field.name: go_pointers[message.name, field.number] for field in scalars
    }
