"""Pods, records and clocks for tests."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from wasmlet.pods.environment import PodFacts
from wasmlet.pods.record import Attempt
from wasmlet_contract.k8s.core.v1 import container_pb2, pod_pb2

T0 = datetime(2026, 1, 1, tzinfo=UTC)
FACTS = PodFacts(
    node_name="node-1",
    host_ips=("10.0.0.1",),
    pod_ips=("10.1.0.7",),
    allocatable={"cpu": "2", "memory": "1Gi"},
)


class FakeClock:
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.time = T0
        self._sleepers: list[tuple[datetime, asyncio.Event]] = []

    def now(self) -> datetime:
        return self.time

    async def wait(self, event: asyncio.Event, until: datetime | None) -> None:
        if until is None:
            await event.wait()
            return
        if until <= self.time:
            return
        alarm = asyncio.Event()
        self._sleepers.append((until, alarm))
        waits = {asyncio.create_task(event.wait()), asyncio.create_task(alarm.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def advance(self, **kwargs: float) -> None:
        self.time += timedelta(**kwargs)
        for until, alarm in self._sleepers:
            if until <= self.time:
                alarm.set()


def container(name: str = "web", **fields: object) -> container_pb2.Container:
    return container_pb2.Container(name=name, image=str(fields.pop("image", "app:1")), **fields)  # type: ignore[arg-type]


def pod(*containers: container_pb2.Container, uid: str = "u1", name: str = "p", policy: str = "Always") -> pod_pb2.Pod:
    result = pod_pb2.Pod()
    result.metadata.namespace, result.metadata.name, result.metadata.uid = "default", name, uid
    result.spec.restart_policy = policy
    result.spec.containers.extend(containers or [container()])
    return result


def attempt(
    code: int | None = None, *, id: str = "c1", started: datetime = T0, finished: datetime | None = None
) -> Attempt:
    """An attempt: running without a code, else ended with it."""
    return Attempt(
        id=id,
        image="app:1",
        image_id="sha256:0",
        started_at=started,
        running=code is None,
        finished_at=None if code is None else finished or started,
        exit_code=code or 0,
        reason="" if code is None else ("Completed" if code == 0 else "Error"),
    )
