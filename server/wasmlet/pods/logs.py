"""Which log file a request for a container's logs means."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from wasmlet.pods.container import log_file
from wasmlet.pods.worker import PodWorker


class ContainerNotFoundError(Exception):
    """The pod has no such container, or the container no such instance."""


class NotStartedError(Exception):
    """The container has not started yet, so there is nothing to read."""


@dataclass(frozen=True, slots=True)
class LogSource:
    """The log of one attempt, and the event of its end."""

    path: Path
    ended: asyncio.Event


def locate(worker: PodWorker, container: str, logs: Path, *, previous: bool) -> LogSource:
    """Find the log of a container's newest attempt, or of the one before, with the kubelet's answers if there is none.

    Raises:
        ContainerNotFoundError, NotStartedError
    """
    spec = worker.pod.spec
    pod_name = worker.name[1]
    if not any(c.name == container for c in (*spec.init_containers, *spec.containers)):
        raise ContainerNotFoundError(f'container "{container}" is not valid for pod "{pod_name}"')
    state = worker.record.container(container)
    current, number = state.current, state.restarts
    if previous:
        # While a container waits for its restart, the attempt that ended is the previous one.
        waits = state.waiting_reason != "" and current is not None and not current.running
        attempt, number = (current, number) if waits else (state.previous, number - 1)
        if attempt is None:
            raise ContainerNotFoundError(f'previous terminated container "{container}" in pod "{pod_name}" not found')
    elif current is None:
        reason = state.waiting_reason or "ContainerCreating"
        raise NotStartedError(f'container "{container}" in pod "{pod_name}" is waiting to start: {reason}')
    else:
        attempt = current
    return LogSource(log_file(logs, worker.pod, container, number), worker.ending(attempt))
