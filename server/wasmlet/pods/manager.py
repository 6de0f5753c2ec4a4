"""All pods of the node, by UID."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import structlog
from wasmlet_contract.virtualkubelet.provider.v1 import provider_pb2

from wasmlet.pods.context import Context
from wasmlet.pods.record import PodRecord
from wasmlet.pods.validation import InvalidRequestError, Violation, validate
from wasmlet.pods.watch import Broadcast, Watch
from wasmlet.pods.worker import PodWorker
from wasmlet.runtime.spec import Exit, ExitCause

log = structlog.get_logger()

# How long a pod whose own task failed rests before it is tried again.
_AFTER_DEFECT_SECONDS = 10

PodWatch = Watch[str, PodWorker]


class PodNotFoundError(Exception):
    """There is no such pod on this node."""


class PodManager:
    """Takes pods over, finds them, ends them. One instance works on a state directory."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._workers: dict[str, PodWorker] = {}
        self._by_name: dict[tuple[str, str], str] = {}
        self._owners: dict[str, PodWorker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._broadcast: Broadcast[str, PodWorker] = Broadcast()
        context.images.on_import(self._image_imported)

    async def restore(self) -> None:
        """Take up the pods of the state directory where they are: running containers are left alone."""
        processes = {process.id: process for process in await self._context.spawner.list()}
        for request, record in self._context.store.load():
            worker = self._add(request, record)
            for container in worker.record.containers.values():
                attempt = container.current
                if attempt is None or not attempt.running:
                    continue
                self._owners[attempt.id] = worker
                process = processes.get(attempt.id)
                if process is None:
                    now = self._context.clock.now()
                    worker.exited(
                        Exit(
                            id=attempt.id,
                            code=137,
                            cause=ExitCause.LOST,
                            message="The container's process was not found when the node started",
                            started_at=attempt.started_at,
                            finished_at=now,
                        )
                    )
                elif process.exit is not None:
                    self.exited(process.exit)
        for unknown in processes.keys() - self._owners.keys():
            log.warning("ending a process that belongs to no pod", container=unknown)
            await self._context.spawner.kill(unknown, 9)
            await self._context.spawner.forget(unknown)
        for worker in self._workers.values():
            self._begin(worker)

    async def stop(self) -> None:
        """End all work on pods; their containers run on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def create(self, request: provider_pb2.CreatePodRequest) -> None:
        """Take a pod over, or update the one of the same UID.

        Raises:
            InvalidRequestError: the pod is malformed.
            OSError: it cannot be recorded; nothing is changed.
        """
        validate(request.pod)
        if request.pod.metadata.uid in self._workers:
            self.update(request)
            return
        self._context.store.save_request(request.pod.metadata.uid, request)
        older = self._workers.get(self._by_name.get(_name(request), ""))
        worker = self._add(request, None)
        if older is not None:
            # One name has one pod in the cluster: the older one is gone there.
            older.terminate(None)
        self._begin(worker)

    def update(self, request: provider_pb2.CreatePodRequest) -> None:
        """Hand a pod its newest spec and references.

        Raises:
            InvalidRequestError: the pod is malformed.
            PodNotFoundError: its UID is not known.
            OSError: it cannot be recorded; nothing is changed.
        """
        validate(request.pod)
        worker = self.get(uid=request.pod.metadata.uid)
        if worker.name != _name(request):
            names = "/".join(worker.name)
            raise InvalidRequestError([Violation("pod.metadata.name", f"the pod of this UID is {names}")])
        self._context.store.save_request(worker.uid, request)
        worker.update(request)

    def delete(self, worker: PodWorker, grace: timedelta | None) -> None:
        """Begin to end a pod. None: with its own grace period."""
        worker.terminate(grace)

    def get(self, *, uid: str = "", namespace: str = "", name: str = "") -> PodWorker:
        """Find a pod by UID, or the newest one of a name.

        Raises:
            PodNotFoundError: there is none.
            InvalidRequestError: neither is given.
        """
        if not uid and not (namespace and name):
            raise InvalidRequestError([Violation("uid", "is required, or both namespace and name")])
        worker = self._workers.get(uid or self._by_name.get((namespace, name), ""))
        if worker is None:
            raise PodNotFoundError(f'pod with UID "{uid}" not found' if uid else f'pod "{namespace}/{name}" not found')
        return worker

    def list(self) -> list[PodWorker]:
        """All pods, in the order in which they came."""
        return list(self._workers.values())

    def running(self) -> int:
        """How many containers run."""
        return len(self._owners)

    @contextmanager
    def watch(self) -> Iterator[PodWatch]:
        with self._broadcast.watch(self._workers) as watch:
            yield watch

    def exited(self, exit_: Exit) -> None:
        """Hand the end of a process to its pod."""
        worker = self._owners.pop(exit_.id, None)
        if worker is None:
            log.warning("a process ended that belongs to no pod", container=exit_.id)
            return
        worker.exited(exit_)

    def uses_image(self, image_id: str) -> bool:
        """Whether a container of some pod has been started from the image."""
        return any(
            container.current is not None and container.current.image_id == image_id
            for worker in self._workers.values()
            for container in worker.record.containers.values()
        )

    def _add(self, request: provider_pb2.CreatePodRequest, record: PodRecord | None) -> PodWorker:
        record = record or PodRecord(accepted_at=self._context.clock.now())
        worker = PodWorker(request, record, self._context, self._published, self._owners.__setitem__)
        self._workers[worker.uid] = worker
        self._by_name[worker.name] = worker.uid
        return worker

    def _begin(self, worker: PodWorker) -> None:
        task = asyncio.create_task(self._live(worker), name=f"pod {'/'.join(worker.name)}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, worker: PodWorker) -> None:
        while not worker.deleted:
            try:
                await worker.run()
            except Exception:
                # A defect must stay the matter of one pod.
                log.exception("the task of a pod failed", namespace=worker.name[0], name=worker.name[1])
                await asyncio.sleep(_AFTER_DEFECT_SECONDS)

    def _published(self, worker: PodWorker) -> None:
        if worker.deleted:
            del self._workers[worker.uid]
            if self._by_name.get(worker.name) == worker.uid:
                del self._by_name[worker.name]
        self._broadcast.publish(worker.uid, worker)

    def _image_imported(self) -> None:
        for worker in self._workers.values():
            if any(container.start_failed_at is not None for container in worker.record.containers.values()):
                worker.retry()


def _name(request: provider_pb2.CreatePodRequest) -> tuple[str, str]:
    return request.pod.metadata.namespace, request.pod.metadata.name
