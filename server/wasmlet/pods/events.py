"""What a kubelet would record as events: kept for an hour, repeated ones counted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from wasmlet_contract.k8s.core.v1 import event_pb2, pod_pb2

from wasmlet.pods.clock import Clock
from wasmlet.pods.status import timestamp
from wasmlet.pods.watch import Broadcast, Watch

COMPONENT = "wasmlet"
# As long as an API server keeps events, and no more of them than a person could read.
KEEP_FOR = timedelta(hours=1)
KEEP_AT_MOST = 5000

EventWatch = Watch[str, event_pb2.Event]


class EventRecorder:
    """Records events and tells watchers of them."""

    def __init__(self, clock: Clock, node_name: str) -> None:
        self._clock = clock
        self._node_name = node_name
        self._events: dict[str, tuple[datetime, event_pb2.Event]] = {}
        self._broadcast: Broadcast[str, event_pb2.Event] = Broadcast()

    def normal(self, pod: pod_pb2.Pod, reason: str, message: str, container: str = "") -> None:
        """Record that something went as it should, of a pod or of one of its containers."""
        self._record("Normal", pod, reason, message, container)

    def warning(self, pod: pod_pb2.Pod, reason: str, message: str, container: str = "") -> None:
        """Record that something did not go as it should."""
        self._record("Warning", pod, reason, message, container)

    @contextmanager
    def watch(self, involved_uid: str = "") -> Iterator[EventWatch]:
        """Watch all events; a reader that wants those of one object filters them by `wanted`."""
        held = {
            name: event
            for name, (_, event) in self._events.items()
            if not involved_uid or event.involved_object.uid == involved_uid
        }
        with self._broadcast.watch(held) as watch:
            yield watch

    def _record(self, kind: str, pod: pod_pb2.Pod, reason: str, message: str, container: str) -> None:
        now = self._clock.now()
        meta = pod.metadata
        field_path = _field_path(pod, container)
        digest = hashlib.blake2b("\0".join((meta.uid, field_path, kind, reason, message)).encode(), digest_size=8)
        name = f"{meta.name[:230]}.{digest.hexdigest()}"
        held = self._events.pop(name, None)
        if held is None:
            event = event_pb2.Event(reason=reason, message=message, type=kind, first_timestamp=timestamp(now))
            event.metadata.name, event.metadata.namespace = name, meta.namespace
            event.involved_object.kind, event.involved_object.api_version = "Pod", "v1"
            event.involved_object.namespace, event.involved_object.name = meta.namespace, meta.name
            event.involved_object.uid, event.involved_object.field_path = meta.uid, field_path
            event.source.component, event.source.host = COMPONENT, self._node_name
            event.reporting_component, event.reporting_instance = COMPONENT, self._node_name
        else:
            event = event_pb2.Event()
            event.CopyFrom(held[1])
        event.count += 1
        event.last_timestamp.CopyFrom(timestamp(now))
        self._events[name] = (now, event)
        self._prune(now)
        self._broadcast.publish(name, event)

    def _prune(self, now: datetime) -> None:
        # Insertion order is the order of the last occurrence: the oldest stand in front.
        while self._events:
            name, (at, _) = next(iter(self._events.items()))
            if len(self._events) <= KEEP_AT_MOST and now - at < KEEP_FOR:
                return
            del self._events[name]


def _field_path(pod: pod_pb2.Pod, container: str) -> str:
    if not container:
        return ""
    field = "initContainers" if any(c.name == container for c in pod.spec.init_containers) else "containers"
    return f"spec.{field}{{{container}}}"
