"""What the pods of a node share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wasmlet.images.store import ImageStore
from wasmlet.pods.clock import Clock
from wasmlet.pods.environment import PodFacts
from wasmlet.pods.events import EventRecorder
from wasmlet.pods.store import PodStore
from wasmlet.runtime.client import Spawner
from wasmlet.runtime.compiler import CompileCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The machinery that a pod is run with."""

    clock: Clock
    compiler: CompileCache
    events: EventRecorder
    facts: PodFacts
    images: ImageStore
    # Folder of the pods' logs.
    logs: Path
    spawner: Spawner
    store: PodStore
