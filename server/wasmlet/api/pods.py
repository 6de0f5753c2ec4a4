"""ProviderService: virtual-kubelet's provider interface over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from wasmlet_contract.k8s.core.v1 import pod_pb2
from wasmlet_contract.virtualkubelet.provider.v1 import (
    events_pb2,
    provider_pb2,
    provider_pb2_grpc,
    stats_pb2,
    streams_pb2,
)

from wasmlet.api.errors import NotBuiltError
from wasmlet.pods.events import EventRecorder
from wasmlet.pods.logs import locate
from wasmlet.pods.manager import PodManager
from wasmlet.pods.validation import InvalidRequestError, Violation
from wasmlet.runtime.logs import LogOptions, read_log

Context = grpc.aio.ServicerContext[Any, Any]

# A message of GetPods is closed when it is this large, well below gRPC's default limit of 4 MiB.
_LIST_BYTES = 1024 * 1024


class ProviderService(provider_pb2_grpc.ProviderServiceServicer):
    def __init__(self, pods: PodManager, events: EventRecorder, logs: Path) -> None:
        self._pods = pods
        self._events = events
        self._logs = logs

    async def CreatePod(
        self, request: provider_pb2.CreatePodRequest, context: Context
    ) -> provider_pb2.CreatePodResponse:
        _require(request.HasField("pod"), "pod", "is required")
        self._pods.create(request)
        return provider_pb2.CreatePodResponse()

    async def UpdatePod(
        self, request: provider_pb2.UpdatePodRequest, context: Context
    ) -> provider_pb2.UpdatePodResponse:
        _require(request.HasField("pod"), "pod", "is required")
        self._pods.update(provider_pb2.CreatePodRequest(pod=request.pod, references=request.references))
        return provider_pb2.UpdatePodResponse()

    async def DeletePod(
        self, request: provider_pb2.DeletePodRequest, context: Context
    ) -> provider_pb2.DeletePodResponse:
        worker = self._pods.get(uid=request.uid, namespace=request.namespace, name=request.name)
        grace = None
        if request.HasField("grace_period_seconds"):
            seconds = request.grace_period_seconds
            _require(0 <= seconds <= _MAX_SECONDS, "grace_period_seconds", f"{seconds} must be 0 to {_MAX_SECONDS}")
            grace = timedelta(seconds=seconds)
        worker.terminate(grace)
        return provider_pb2.DeletePodResponse()

    async def GetPod(self, request: provider_pb2.GetPodRequest, context: Context) -> provider_pb2.GetPodResponse:
        worker = self._pods.get(uid=request.uid, namespace=request.namespace, name=request.name)
        return provider_pb2.GetPodResponse(pod=worker.snapshot())

    async def GetPodStatus(
        self, request: provider_pb2.GetPodStatusRequest, context: Context
    ) -> provider_pb2.GetPodStatusResponse:
        worker = self._pods.get(uid=request.uid, namespace=request.namespace, name=request.name)
        return provider_pb2.GetPodStatusResponse(status=worker.snapshot().status)

    async def GetPods(
        self, request: provider_pb2.GetPodsRequest, context: Context
    ) -> AsyncIterator[provider_pb2.GetPodsResponse]:
        batch: list[pod_pb2.Pod] = []
        size = 0
        for worker in self._pods.list():
            pod = worker.snapshot()
            if batch and size + pod.ByteSize() > _LIST_BYTES:
                yield provider_pb2.GetPodsResponse(pods=batch)
                batch, size = [], 0
            batch.append(pod)
            size += pod.ByteSize()
        if batch:
            yield provider_pb2.GetPodsResponse(pods=batch)

    async def NotifyPods(
        self, request: provider_pb2.NotifyPodsRequest, context: Context
    ) -> AsyncIterator[provider_pb2.NotifyPodsResponse]:
        synced = False
        with self._pods.watch() as watch:
            async for workers in watch:
                for worker in workers:
                    yield provider_pb2.NotifyPodsResponse(pod=worker.snapshot(), deleted=worker.deleted)
                if not synced:
                    synced = True
                    yield provider_pb2.NotifyPodsResponse(synced=True)

    async def NotifyEvents(
        self, request: provider_pb2.NotifyEventsRequest, context: Context
    ) -> AsyncIterator[events_pb2.NotifyEventsResponse]:
        wanted = request.involved_object_uid
        synced = False
        with self._events.watch(wanted) as watch:
            async for events in watch:
                for event in events:
                    if wanted in ("", event.involved_object.uid):
                        yield events_pb2.NotifyEventsResponse(event=event)
                if not synced:
                    synced = True
                    yield events_pb2.NotifyEventsResponse(synced=True)

    async def GetContainerLogs(
        self, request: provider_pb2.GetContainerLogsRequest, context: Context
    ) -> AsyncIterator[provider_pb2.GetContainerLogsResponse]:
        options = _log_options(request)
        worker = self._pods.get(uid=request.uid, namespace=request.namespace, name=request.pod_name)
        source = locate(worker, request.container_name, self._logs, previous=request.previous)
        async for data in read_log(source.path, options, source.ended):
            yield provider_pb2.GetContainerLogsResponse(data=data)

    async def RunInContainer(
        self, request_iterator: AsyncIterator[streams_pb2.RunInContainerRequest], context: Context
    ) -> AsyncIterator[streams_pb2.RunInContainerResponse]:
        raise NotBuiltError("exec: this version of wasmlet cannot run further commands in a container yet")
        yield

    async def AttachToContainer(
        self, request_iterator: AsyncIterator[streams_pb2.AttachToContainerRequest], context: Context
    ) -> AsyncIterator[streams_pb2.AttachToContainerResponse]:
        raise NotBuiltError("attach: this version of wasmlet cannot connect to a container's streams yet; see its logs")
        yield

    async def PortForward(
        self, request_iterator: AsyncIterator[streams_pb2.PortForwardRequest], context: Context
    ) -> AsyncIterator[streams_pb2.PortForwardResponse]:
        raise NotBuiltError("port-forward: pods of this version of wasmlet have no network yet")
        yield

    async def GetStatsSummary(
        self, request: stats_pb2.GetStatsSummaryRequest, context: Context
    ) -> stats_pb2.GetStatsSummaryResponse:
        raise NotBuiltError("this version of wasmlet does not measure usage yet")

    async def GetMetricsResource(
        self, request: stats_pb2.GetMetricsResourceRequest, context: Context
    ) -> stats_pb2.GetMetricsResourceResponse:
        raise NotBuiltError("this version of wasmlet does not measure usage yet")


# The largest number of seconds that an API server lets through for durations of this kind.
_MAX_SECONDS = 2**31 - 1


def _log_options(request: provider_pb2.GetContainerLogsRequest) -> LogOptions:
    _require(bool(request.container_name), "container_name", "is required")
    tail = request.tail if request.HasField("tail") else None
    limit_bytes = request.limit_bytes if request.HasField("limit_bytes") else None
    since_seconds = request.since_seconds if request.HasField("since_seconds") else None
    _require(tail is None or tail >= 0, "tail", f"{tail} must not be negative")
    _require(limit_bytes is None or limit_bytes >= 1, "limit_bytes", f"{limit_bytes} must be at least 1")
    _require(
        since_seconds is None or 1 <= since_seconds <= _MAX_SECONDS,
        "since_seconds",
        f"{since_seconds} must be 1 to {_MAX_SECONDS}",
    )
    _require(since_seconds is None or not request.HasField("since_time"), "since_time", "excludes since_seconds")
    since = None if since_seconds is None else datetime.now(UTC) - timedelta(seconds=since_seconds)
    if request.HasField("since_time"):
        try:
            since = request.since_time.ToDatetime(UTC)
        except (ValueError, OverflowError) as error:
            raise InvalidRequestError([Violation("since_time", "is not a time")]) from error
    return LogOptions(
        follow=request.follow,
        tail=tail,
        limit_bytes=limit_bytes,
        since=since,
        timestamps=request.timestamps,
    )


def _require(condition: bool, field: str, description: str) -> None:
    if not condition:
        raise InvalidRequestError([Violation(field, description)])
