"""A real `wasmlet serve`, driven as the node agent drives it; nothing of it is left behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
from wasmlet_contract.k8s.core.v1 import container_pb2, pod_pb2
from wasmlet_contract.virtualkubelet.provider.v1 import node_pb2, node_pb2_grpc, provider_pb2, provider_pb2_grpc
from wasmlet_contract.wasmlet.v1 import images_pb2, images_pb2_grpc

from hack.benchmarks.figures import BenchError
from hack.benchmarks.guests import Guest
from hack.benchmarks.processes import NodeProcesses, kill_all_of

_DEADLINE_SECONDS = 60
_CHUNK = 1 << 20
_LOG_TAIL = 4000

CONTAINER = "main"

Condition = Callable[[provider_pb2.NotifyPodsResponse], bool]


class PodWatch:
    """The newest state of every pod, as one NotifyPods stream tells it."""

    def __init__(self) -> None:
        self._newest: dict[str, provider_pb2.NotifyPodsResponse] = {}
        self._waiting: dict[str, tuple[Condition, asyncio.Future[provider_pb2.NotifyPodsResponse]]] = {}
        self._error: grpc.aio.AioRpcError | None = None

    async def run(self, stub: provider_pb2_grpc.ProviderServiceAsyncStub) -> None:
        """Listen until cancelled; a stream that breaks fails all who wait."""
        try:
            async for message in stub.NotifyPods(provider_pb2.NotifyPodsRequest()):
                if not message.synced:
                    self._tell(message.pod.metadata.uid, message)
        except grpc.aio.AioRpcError as error:
            self._error = error
            for _, future in self._waiting.values():
                future.set_exception(error)

    async def until(self, pod: pod_pb2.Pod, condition: Condition) -> pod_pb2.Pod:
        """Wait until a pod is told in such a state. One may wait for a pod at a time."""
        uid = pod.metadata.uid
        if self._error is not None:
            raise self._error
        if uid in self._newest and condition(self._newest[uid]):
            return self._newest[uid].pod
        future: asyncio.Future[provider_pb2.NotifyPodsResponse] = asyncio.get_running_loop().create_future()
        self._waiting[uid] = (condition, future)
        try:
            async with asyncio.timeout(_DEADLINE_SECONDS):
                return (await future).pod
        except TimeoutError as error:
            newest = self._newest.get(uid)
            raise BenchError(
                f"pod {pod.metadata.name} is not where it should be after {_DEADLINE_SECONDS} s: "
                f"{newest.pod.status if newest else 'nothing was told of it'}"
            ) from error
        finally:
            del self._waiting[uid]

    def _tell(self, uid: str, message: provider_pb2.NotifyPodsResponse) -> None:
        self._newest[uid] = message
        if uid in self._waiting:
            condition, future = self._waiting[uid]
            if not future.done() and condition(message):
                future.set_result(message)


class Provider:
    """A client of the provider under measurement."""

    def __init__(self, process: subprocess.Popen[bytes], channel: grpc.aio.Channel, log: Path) -> None:
        self._process = process
        self._log = log
        self.pods = provider_pb2_grpc.ProviderServiceStub(channel)
        self.watch = PodWatch()
        self._node = node_pb2_grpc.NodeServiceStub(channel)
        self._images = images_pb2_grpc.ImageServiceStub(channel)

    async def ready(self) -> None:
        """Wait until the provider answers.

        Raises:
            BenchError: it has ended instead.
        """
        while True:
            try:
                await self._node.Ping(node_pb2.PingRequest(), wait_for_ready=True, timeout=1)
            except grpc.aio.AioRpcError as error:
                if self._process.poll() is not None:
                    log = self._log.read_text(errors="replace")[-_LOG_TAIL:]
                    raise BenchError(f"wasmlet serve has ended:\n{log}") from error
            else:
                return

    def processes(self) -> NodeProcesses:
        return NodeProcesses.of(self._process.pid)

    async def import_image(self, guest: Guest) -> None:
        """Import and compile, so that no figure has a compilation in it."""

        async def requests() -> AsyncIterator[images_pb2.ImportImageRequest]:
            yield images_pb2.ImportImageRequest(header=images_pb2.ImportImageHeader(name=guest.image))
            data = guest.module.read_bytes()
            for start in range(0, len(data), _CHUNK):
                yield images_pb2.ImportImageRequest(chunk=data[start : start + _CHUNK])

        async for _ in self._images.ImportImage(requests()):
            pass

    async def create(self, pod: pod_pb2.Pod) -> None:
        await self.pods.CreatePod(provider_pb2.CreatePodRequest(pod=pod))

    async def follow(self, pod: pod_pb2.Pod) -> bytes:
        """The first output of a pod, with the time at which it was written to the log before it."""
        request = provider_pb2.GetContainerLogsRequest(
            uid=pod.metadata.uid, container_name=CONTAINER, follow=True, timestamps=True
        )
        stream = self.pods.GetContainerLogs(request)
        try:
            async for message in stream:
                return message.data
        finally:
            stream.cancel()
        raise BenchError(f"pod {pod.metadata.name} printed nothing")

    async def list(self) -> list[pod_pb2.Pod]:
        return [pod async for message in self.pods.GetPods(provider_pb2.GetPodsRequest()) for pod in message.pods]

    async def sync(self) -> None:
        """Open a watch and hear of every pod there is."""
        stream = self.pods.NotifyPods(provider_pb2.NotifyPodsRequest())
        try:
            async for message in stream:
                if message.synced:
                    return
        finally:
            stream.cancel()

    async def delete(self, pod: pod_pb2.Pod) -> None:
        """Delete a pod at once and wait until it is gone."""
        try:
            await self.pods.DeletePod(provider_pb2.DeletePodRequest(uid=pod.metadata.uid, grace_period_seconds=0))
        except grpc.aio.AioRpcError as error:
            # It may have gone since it was listed.
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
        await self.watch.until(pod, lambda message: message.deleted)

    async def clear(self) -> None:
        """Delete every pod: their processes would outlive the provider."""
        await asyncio.gather(*(self.delete(pod) for pod in await self.list()))


@asynccontextmanager
async def running_provider(folder: Path) -> AsyncIterator[Provider]:
    """A provider with its state below `folder`, which is stopped with all that it runs, whatever happens."""
    address, log = f"unix://{folder}/w.sock", folder / "provider.log"
    process = _serve(folder / "state", address, log)
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            provider = Provider(process, channel, log)
            await provider.ready()
            watching = asyncio.create_task(provider.watch.run(provider.pods))
            try:
                yield provider
            finally:
                # The pods of a provider that has died are ended with their spawner, below.
                with suppress(grpc.aio.AioRpcError):
                    await provider.clear()
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
    finally:
        _stop(process, folder)


def make_pod(guest: Guest, name: str) -> pod_pb2.Pod:
    """A pod that runs a guest once."""
    pod = pod_pb2.Pod()
    pod.metadata.namespace, pod.metadata.name, pod.metadata.uid = "default", name, str(uuid.uuid4())
    pod.spec.restart_policy = "Never"
    pod.spec.containers.append(container_pb2.Container(name=CONTAINER, image=guest.image))
    return pod


def started(message: provider_pb2.NotifyPodsResponse) -> bool:
    """Whether the container runs, or has run already."""
    return any(
        status.state.HasField("running") or status.state.HasField("terminated")
        for status in message.pod.status.container_statuses
    )


def _serve(state: Path, address: str, log: Path) -> subprocess.Popen[bytes]:
    options = ("--state-dir", state, "--listen", address, "--node-name", "bench", "--node-ip", "192.0.2.1")
    with log.open("ab") as output:
        # Ctrl-C is for the bench, which deletes the pods before it stops the provider: hence a session of its own.
        return subprocess.Popen(
            [sys.executable, "-m", "wasmlet", "serve", *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _stop(process: subprocess.Popen[bytes], folder: Path) -> None:
    process.terminate()
    try:
        process.wait(_DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if killed := kill_all_of(folder):
        print(f"the provider left {killed} processes behind; they are killed now", file=sys.stderr)
