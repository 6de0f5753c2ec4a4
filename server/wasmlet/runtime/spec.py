"""What the runtime is told and what it tells: plain data, with a JSON form for the spawner's socket."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

# Settings of the engine, as wasmtime's Config names them; compiled code depends on them.
ENGINE_SETTINGS = {"strategy": "cranelift", "cranelift_opt_level": "speed"}


class ModuleKind(StrEnum):
    """What a WebAssembly file holds."""

    # A core module: WASI preview 1.
    CORE = "core"
    # A component: WASI preview 2.
    COMPONENT = "component"


class ExitCause(StrEnum):
    """How a process ended."""

    EXITED = "exited"
    TRAPPED = "trapped"
    START_FAILED = "start-failed"
    SIGNALLED = "signalled"
    # The spawner died and took the process along, or the process is unknown.
    LOST = "lost"


# Exit codes of what did not end by itself, as a shell or containerd would give them.
TRAP_CODE = 134
START_FAILED_CODE = 128
LOST_CODE = 137


class SpawnError(Exception):
    """A process could not be started; the message is for the user."""


class CompileError(Exception):
    """A file is not WebAssembly that can be run; the message is for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preopen:
    """A host directory that the guest sees at `guest`, an absolute path."""

    host: Path
    guest: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSpec:
    """Where a process' output goes, in the CRI log format; rotated by size."""

    path: Path
    max_bytes: int = 10 * 1024 * 1024
    max_files: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """A process to start. The ID is unique to it: letters, digits, `-`, `.` and `_`."""

    id: str
    artifact: Path
    kind: ModuleKind
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    preopens: tuple[Preopen, ...]
    log: LogSpec
    working_dir: str = "/"
    # False: the guest reads end of file.
    stdin: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "artifact": str(self.artifact),
            "kind": self.kind,
            "argv": self.argv,
            "env": self.env,
            "preopens": [(str(p.host), p.guest, p.read_only) for p in self.preopens],
            "log": {"path": str(self.log.path), "max_bytes": self.log.max_bytes, "max_files": self.log.max_files},
            "working_dir": self.working_dir,
            "stdin": self.stdin,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """The end of a process. Exit codes are 0 to 255; a process that was killed has 128 and the signal."""

    id: str
    code: int
    cause: ExitCause
    message: str
    started_at: datetime
    finished_at: datetime

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Exit:
        return cls(
            id=raw["id"],
            code=raw["code"],
            cause=ExitCause(raw["cause"]),
            message=raw["message"],
            started_at=time_of(raw["started_at"]),
            finished_at=time_of(raw["finished_at"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A process that was started."""

    id: str
    pid: int
    started_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """A process that the spawner knows: running, or ended and not forgotten yet."""

    id: str
    # None when it has ended.
    pid: int | None
    started_at: datetime
    exit: Exit | None


def time_of(seconds: float) -> datetime:
    """A time of day from seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC)
