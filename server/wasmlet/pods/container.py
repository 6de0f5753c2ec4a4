"""From a container's spec to the process that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wasmlet_contract.k8s.core.v1 import container_pb2, pod_pb2

from wasmlet.images.names import base
from wasmlet.images.store import Image
from wasmlet.pods.context import Context
from wasmlet.pods.environment import ContainerConfigError, environment, hostname
from wasmlet.pods.expansion import expand
from wasmlet.pods.references import References
from wasmlet.runtime.spec import CompileError, LogSpec, Preopen, ProcessSpec
from wasmlet.volumes.root import create_root


class ContainerError(Exception):
    """A container cannot start. `reason` is the kubelet's; `again` is the one it has when tries keep failing."""

    def __init__(self, reason: str, message: str, *, again: str = "", event_reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.again = again or reason
        self.event_reason = event_reason


@dataclass(frozen=True, slots=True)
class Prepared:
    """A container that is ready to run."""

    image: Image
    spec: ProcessSpec


async def prepare(
    pod: pod_pb2.Pod,
    container: container_pb2.Container,
    references: References,
    container_id: str,
    restarts: int,
    context: Context,
) -> Prepared:
    """Find the image, resolve the environment, compile the module, lay out the root file system.

    Raises:
        ContainerError: with the reason that the kubelet would give.
    """
    image = _image(pod, container, context)

    def warn(reason: str, message: str) -> None:
        context.events.warning(pod, reason, message, container.name)

    if pod.spec.volumes:
        raise ContainerError("CreateContainerConfigError", "volumes are not supported yet")
    try:
        variables = environment(pod, container, references, context.facts, warn)
    except ContainerConfigError as error:
        raise ContainerError("CreateContainerConfigError", str(error), event_reason=error.event_reason) from error
    try:
        compiled = await context.compiler.compile(image.path, image.id)
    except CompileError as error:
        raise ContainerError("CreateContainerError", str(error)) from error
    command = [expand(word, variables) for word in container.command] or [base(image.name)]
    working_dir = container.working_dir or "/"
    try:
        root = create_root(
            context.store.folder(pod.metadata.uid) / "containers" / container.name,
            hostname=hostname(pod),
            address=context.facts.pod_ips[0],
            working_dir=working_dir,
        )
        log = log_file(context.logs, pod, container.name, restarts)
        log.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ContainerError("CreateContainerError", f"cannot lay out the container's files: {error}") from error
    spec = ProcessSpec(
        id=container_id,
        artifact=compiled.artifact,
        kind=compiled.kind,
        argv=(*command, *(expand(word, variables) for word in container.args)),
        env=tuple(variables.items()),
        preopens=(Preopen(host=root, guest="/"),),
        working_dir=working_dir,
        log=LogSpec(path=log),
        stdin=container.stdin,
    )
    return Prepared(image=image, spec=spec)


def log_folder(logs: Path, pod: pod_pb2.Pod) -> Path:
    """Where a pod's logs are, named as the kubelet names it under /var/log/pods."""
    meta = pod.metadata
    return logs / f"{meta.namespace}_{meta.name}_{meta.uid}"


def log_file(logs: Path, pod: pod_pb2.Pod, container: str, restarts: int) -> Path:
    """The log of one attempt of a container."""
    return log_folder(logs, pod) / container / f"{restarts}.log"


def _image(pod: pod_pb2.Pod, container: container_pb2.Container, context: Context) -> Image:
    try:
        image = context.images.find(container.image)
    except ValueError as error:
        message = f'Failed to apply default image tag "{container.image}": {error}'
        raise ContainerError("InvalidImageName", message) from error
    if image is not None:
        message = f'Container image "{container.image}" already present on machine'
        context.events.normal(pod, "Pulled", message, container.name)
        return image
    if container.image_pull_policy == "Never":
        message = f'Container image "{container.image}" is not present with pull policy of Never'
        raise ContainerError("ErrImageNeverPull", message, event_reason="ErrImageNeverPull")
    raise ContainerError(
        "ErrImagePull",
        f'failed to pull image "{container.image}": this node does not pull images yet; '
        f"import it with: wasmletctl image import {container.image} FILE.wasm",
        again="ImagePullBackOff",
    )
