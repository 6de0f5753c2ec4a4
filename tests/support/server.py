"""A real `wasmlet serve` process for tests, and a client of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from wasmlet_contract.k8s.core.v1 import container_pb2, event_pb2, pod_pb2
from wasmlet_contract.virtualkubelet.provider.v1 import (
    node_pb2,
    node_pb2_grpc,
    provider_pb2,
    provider_pb2_grpc,
    references_pb2,
)
from wasmlet_contract.wasmlet.v1 import images_pb2, images_pb2_grpc

DEADLINE_SECONDS = 30


class Server:
    """One provider on a state directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.state_dir = folder / "state"
        self.socket = folder / "wasmlet.sock"
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"unix://{self.socket}"

    def start(self, *options: str) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "wasmlet", "serve"),
                    *("--state-dir", str(self.state_dir), "--listen", self.address, "--node-ip", "192.0.2.7"),
                    *("--node-name", "test-node", "--log-level", "debug", *options),
                ],
                stderr=log,
            )

    def stop(self) -> int:
        """SIGTERM, as a service manager would; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_SECONDS)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)

    def processes(self) -> list[int]:
        """Every process of this server but the provider: those whose command line has its state directory."""
        own = None if self.process is None else self.process.pid
        return [pid for pid in _pids() if pid not in (own, os.getpid()) and self._belongs(pid)]

    def _belongs(self, pid: int) -> bool:
        try:
            return os.fsencode(self.state_dir) in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False


class Client:
    """Calls a server, and waits for what it reports."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.provider = provider_pb2_grpc.ProviderServiceStub(channel)
        self.node = node_pb2_grpc.NodeServiceStub(channel)
        self.images = images_pb2_grpc.ImageServiceStub(channel)

    async def ready(self) -> None:
        await self.node.Ping(node_pb2.PingRequest(), wait_for_ready=True, timeout=DEADLINE_SECONDS)

    async def import_image(self, name: str, file: Path | bytes) -> images_pb2.Image:
        data = file if isinstance(file, bytes) else file.read_bytes()

        async def requests() -> AsyncIterator[images_pb2.ImportImageRequest]:
            yield images_pb2.ImportImageRequest(header=images_pb2.ImportImageHeader(name=name, size=len(data)))
            for start in range(0, len(data), 1 << 20):
                yield images_pb2.ImportImageRequest(chunk=data[start : start + (1 << 20)])

        *_, last = [step async for step in self.images.ImportImage(requests())]
        assert last.phase == images_pb2.ImportImageResponse.PHASE_DONE
        return last.image

    async def create(self, pod: pod_pb2.Pod, references: references_pb2.PodReferences | None = None) -> pod_pb2.Pod:
        await self.provider.CreatePod(provider_pb2.CreatePodRequest(pod=pod, references=references))
        return pod

    async def get(self, pod: pod_pb2.Pod) -> pod_pb2.Pod:
        return (await self.provider.GetPod(provider_pb2.GetPodRequest(uid=pod.metadata.uid))).pod

    async def pods(self) -> list[pod_pb2.Pod]:
        return [p async for message in self.provider.GetPods(provider_pb2.GetPodsRequest()) for p in message.pods]

    async def delete(self, pod: pod_pb2.Pod, grace: int | None = None) -> pod_pb2.Pod:
        """Delete a pod and wait until it is gone; returns its last state."""
        uid = pod.metadata.uid
        async with asyncio.timeout(DEADLINE_SECONDS):
            watch = self.provider.NotifyPods(provider_pb2.NotifyPodsRequest())
            async for message in watch:
                if message.synced:
                    await self.provider.DeletePod(provider_pb2.DeletePodRequest(uid=uid, grace_period_seconds=grace))
                if message.deleted and message.pod.metadata.uid == uid:
                    watch.cancel()
                    return message.pod
        raise AssertionError("the watch ended")

    async def until(
        self, pod: pod_pb2.Pod, condition: Callable[[pod_pb2.Pod], bool], seconds: float = DEADLINE_SECONDS
    ) -> pod_pb2.Pod:
        """Wait until the server reports the pod in a state that meets the condition."""
        newest = None
        watch = self.provider.NotifyPods(provider_pb2.NotifyPodsRequest())
        try:
            async with asyncio.timeout(seconds):
                async for message in watch:
                    if message.pod.metadata.uid == pod.metadata.uid:
                        newest = message.pod
                        if condition(newest):
                            return newest
        except TimeoutError as error:
            raise AssertionError(f"not within {seconds} s; the pod is: {newest and newest.status}") from error
        finally:
            watch.cancel()
        raise AssertionError("the watch ended")

    async def until_phase(self, pod: pod_pb2.Pod, *phases: str) -> pod_pb2.Pod:
        return await self.until(pod, lambda p: p.status.phase in phases)

    async def until_waiting(self, pod: pod_pb2.Pod, reason: str) -> pod_pb2.Pod:
        """Wait until the first container waits for this reason."""
        return await self.until(pod, lambda p: p.status.container_statuses[0].state.waiting.reason == reason)

    async def logs(self, pod: pod_pb2.Pod, container: str = "", **options: object) -> bytes:
        request = provider_pb2.GetContainerLogsRequest(
            uid=pod.metadata.uid,
            container_name=container or pod.spec.containers[0].name,
            **options,  # type: ignore[arg-type]
        )
        return b"".join([message.data async for message in self.provider.GetContainerLogs(request)])

    async def run(self, pod: pod_pb2.Pod, references: references_pb2.PodReferences | None = None) -> pod_pb2.Pod:
        """Create a pod and wait until it has ended."""
        await self.create(pod, references)
        return await self.until_phase(pod, "Succeeded", "Failed")

    async def events(self, pod: pod_pb2.Pod) -> list[event_pb2.Event]:
        """The events of a pod up to now."""
        result = []
        watch = self.provider.NotifyEvents(provider_pb2.NotifyEventsRequest(involved_object_uid=pod.metadata.uid))
        async for message in watch:
            if message.synced:
                break
            result.append(message.event)
        watch.cancel()
        return result


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        client = Client(channel)
        await client.ready()
        yield client


def make_pod(
    image: str, *args: str, name: str = "p", policy: str = "Never", namespace: str = "default", uid: str = ""
) -> pod_pb2.Pod:
    """A pod of one container `main`."""
    pod = pod_pb2.Pod()
    pod.metadata.name, pod.metadata.namespace = name, namespace
    pod.metadata.uid = uid or str(uuid.uuid4())
    pod.spec.restart_policy = policy
    pod.spec.containers.append(container_pb2.Container(name="main", image=image, args=args))
    return pod


def terminated(pod: pod_pb2.Pod, index: int = 0) -> tuple[int, str, str]:
    """Exit code, reason and message of a container that has ended."""
    state = pod.status.container_statuses[index].state.terminated
    return state.exit_code, state.reason, state.message


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
