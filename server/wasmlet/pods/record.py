"""What the node knows of a pod beyond its spec: the attempts at running its containers. Kept on disk as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from wasmlet.pods.backoff import Backoff


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One run of a container, from its start to its end."""

    id: str
    image: str
    image_id: str
    started_at: datetime
    running: bool = True
    # Asked to stop.
    stopping: bool = False
    finished_at: datetime | None = None
    exit_code: int = 0
    reason: str = ""
    message: str = ""

    @property
    def succeeded(self) -> bool:
        return not self.running and self.exit_code == 0


@dataclass(slots=True)
class ContainerRecord:
    """One container: its newest attempt, the one before, and why it waits where it does."""

    name: str
    restarts: int = 0
    current: Attempt | None = None
    previous: Attempt | None = None
    waiting_reason: str = ""
    waiting_message: str = ""
    # For containers that end, and for starts that fail before there is an attempt.
    restart_backoff: Backoff = field(default_factory=Backoff)
    start_backoff: Backoff = field(default_factory=Backoff)
    start_failed_at: datetime | None = None

    @property
    def running(self) -> bool:
        return self.current is not None and self.current.running

    def wait(self, reason: str, message: str = "") -> None:
        self.waiting_reason, self.waiting_message = reason, message

    def begin(self, attempt: Attempt) -> None:
        """A new attempt takes the place of the current one, which becomes the previous."""
        if self.current is not None:
            self.previous = self.current
            self.restarts += 1
        self.current = attempt
        self.start_failed_at = None
        self.wait("")


class Ending(StrEnum):
    """Why a pod as a whole is being ended, as in its status' reason. Empty for deletion by request."""

    DELETED = ""
    DEADLINE_EXCEEDED = "DeadlineExceeded"


@dataclass(slots=True)
class PodRecord:
    """The state of a pod."""

    accepted_at: datetime
    containers: dict[str, ContainerRecord] = field(default_factory=dict)
    # Set once, when the pod as a whole begins to end.
    ending: Ending | None = None
    kill_at: datetime | None = None
    # Condition type to its status and the time since which it has it.
    conditions: dict[str, tuple[str, datetime]] = field(default_factory=dict)

    def container(self, name: str) -> ContainerRecord:
        return self.containers.setdefault(name, ContainerRecord(name))

    def dump(self) -> bytes:
        return json.dumps(asdict(self), default=_plain, separators=(",", ":")).encode()

    @classmethod
    def load(cls, data: bytes) -> PodRecord:
        """Read what `dump` wrote.

        Raises:
            ValueError: it is not a pod record, or only a part of one.
        """
        try:
            raw: dict[str, Any] = json.loads(data)
            return cls(
                accepted_at=datetime.fromisoformat(raw["accepted_at"]),
                containers={name: _container(c) for name, c in raw["containers"].items()},
                ending=None if raw["ending"] is None else Ending(raw["ending"]),
                kill_at=_time(raw["kill_at"]),
                conditions={t: (s, datetime.fromisoformat(at)) for t, (s, at) in raw["conditions"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a pod record: {error!r}") from error


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError(f"{type(value)} has no JSON form")


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _attempt(raw: dict[str, Any] | None) -> Attempt | None:
    if raw is None:
        return None
    times = {
        "started_at": datetime.fromisoformat(raw["started_at"]),
        "finished_at": _time(raw["finished_at"]),
    }
    return Attempt(**(raw | times))


def _backoff(raw: dict[str, Any]) -> Backoff:
    return Backoff(delay=timedelta(seconds=raw["delay"]), last_try=_time(raw["last_try"]))


def _container(raw: dict[str, Any]) -> ContainerRecord:
    return ContainerRecord(
        name=raw["name"],
        restarts=raw["restarts"],
        current=_attempt(raw["current"]),
        previous=_attempt(raw["previous"]),
        waiting_reason=raw["waiting_reason"],
        waiting_message=raw["waiting_message"],
        restart_backoff=_backoff(raw["restart_backoff"]),
        start_backoff=_backoff(raw["start_backoff"]),
        start_failed_at=_time(raw["start_failed_at"]),
    )
