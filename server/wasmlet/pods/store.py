"""Pods on disk: a folder a pod, named by its UID, that goes with the pod.

pods/UID/request.pb     the pod and what it refers to, as last received (mode 0600: it holds Secrets)
pods/UID/record.json    what became of it
pods/UID/containers/…   root file systems
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError
from wasmlet_contract.virtualkubelet.provider.v1 import provider_pb2

from wasmlet.pods.record import PodRecord

log = structlog.get_logger()

_REQUEST = "request.pb"
_RECORD = "record.json"


class PodStore:
    """Keeps pods across restarts of the provider."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def folder(self, uid: str) -> Path:
        return self._directory / uid

    def save_request(self, uid: str, request: provider_pb2.CreatePodRequest) -> None:
        self.folder(uid).mkdir(mode=0o700, exist_ok=True)
        _write(self.folder(uid) / _REQUEST, request.SerializeToString())

    def save_record(self, uid: str, record: bytes) -> None:
        _write(self.folder(uid) / _RECORD, record)

    def remove(self, uid: str) -> None:
        """Remove all of a pod. The request goes first: what is interrupted here is no pod at the next start."""
        (self.folder(uid) / _REQUEST).unlink(missing_ok=True)
        shutil.rmtree(self.folder(uid), ignore_errors=True)

    def load(self) -> Iterator[tuple[provider_pb2.CreatePodRequest, PodRecord | None]]:
        """Yield every pod that was saved whole, with None for an unreadable record. Remains are removed."""
        for folder in sorted(self._directory.iterdir()):
            try:
                request = provider_pb2.CreatePodRequest.FromString((folder / _REQUEST).read_bytes())
            except (OSError, DecodeError):
                request = provider_pb2.CreatePodRequest()
            if request.pod.metadata.uid != folder.name:
                log.warning("removing a folder that holds no whole pod", folder=folder.name)
                shutil.rmtree(folder, ignore_errors=True)
                continue
            yield request, _record(folder)


def _record(folder: Path) -> PodRecord | None:
    try:
        return PodRecord.load((folder / _RECORD).read_bytes())
    except (OSError, ValueError) as error:
        log.warning("a pod has no readable record, it starts anew", uid=folder.name, error=str(error))
        return None


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)
