"""Ahead-of-time compiled code, kept on disk.

compiled/HEX-ENGINE.cwasm   code; HEX is the SHA-256 of its source, ENGINE stands for engine, settings and processor
compiled/HEX-ENGINE.json    what is known of it, and the keyed hash that proves that both are ours and whole
compiled/key                the hash's key: code from elsewhere would run unchecked, so none is ever loaded
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import importlib.metadata
import json
import os
import platform
import re
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from wasmlet.runtime.spec import ENGINE_SETTINGS, CompileError, ModuleKind

log = structlog.get_logger()

_KEY_BYTES = 32
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Item:
    """An import or export: module (or interface), name, kind (`func`, `memory`, …)."""

    module: str
    name: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """Code that can be run."""

    artifact: Path
    kind: ModuleKind
    imports: tuple[Item, ...]
    exports: tuple[Item, ...]


# Inode, time of modification, size.
Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Known:
    """What was verified by this process, and the file that it was."""

    compiled: Compiled
    stamp: Stamp | None


class CompileCache:
    """Compiles files once, in processes of their own, at most `max_concurrent` at a time."""

    def __init__(self, directory: Path, *, max_concurrent: int) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in directory.glob("*.new"):
            leftover.unlink()
        self._key = _key(directory / "key")
        self._engine = _engine()
        self._slots = asyncio.Semaphore(max_concurrent)
        self._under_way: dict[str, asyncio.Task[Compiled]] = {}
        self._known: dict[str, _Known] = {}
        # How many compilations were begun since the start.
        self.compilations = 0

    async def compile(self, module: Path, digest: str) -> Compiled:
        """The compiled form of the file `module`, whose digest is `sha256:HEX`: from the cache, or made now.

        Whoever asks for the same file meanwhile waits for the same compilation, and who stops waiting does not end it.

        Raises:
            CompileError: it is not WebAssembly that can be run.
        """
        if not _DIGEST.fullmatch(digest):
            raise CompileError(f"{digest!r} is no digest of the form sha256:HEX")
        known = self._known.get(digest)
        if known is not None and known.stamp is not None and known.stamp == _stamp(known.compiled.artifact):
            return known.compiled
        task = self._under_way.get(digest)
        if task is None:
            task = self._under_way[digest] = asyncio.create_task(self._obtain(module, digest))
            task.add_done_callback(lambda task: self._done(digest, task))
        return await asyncio.shield(task)

    def _done(self, digest: str, task: asyncio.Task[Compiled]) -> None:
        del self._under_way[digest]
        if not task.cancelled():
            # Nobody may be waiting for it any more.
            task.exception()

    def size(self, digest: str) -> int:
        """Bytes of compiled code of a file; 0 if there is none."""
        try:
            return self._artifact(digest).stat().st_size
        except OSError:
            return 0

    def remove(self, digest: str) -> None:
        """Remove what was compiled from a file, for this engine and for earlier ones."""
        self._known.pop(digest, None)
        for file in self._directory.glob(f"{_hex(digest)}-*"):
            file.unlink(missing_ok=True)

    async def _obtain(self, module: Path, digest: str) -> Compiled:
        compiled = await asyncio.to_thread(self._verified, digest)
        if compiled is None:
            async with self._slots:
                compiled = await self._compile(module, digest)
        self._known[digest] = _Known(compiled, _stamp(compiled.artifact))
        return compiled

    async def _compile(self, module: Path, digest: str) -> Compiled:
        self.compilations += 1
        new = self._directory / f"{secrets.token_hex(8)}.new"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "wasmlet.runtime.compile", module, new),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, errors = await process.communicate()
            if process.returncode != 0:
                raise CompileError(errors.decode(errors="replace").strip()[-2000:] or "the compiler was killed")
            self.remove(digest)
            return await asyncio.to_thread(self._keep, digest, new, json.loads(output))
        finally:
            if process.returncode is None:
                process.kill()
            new.unlink(missing_ok=True)

    def _keep(self, digest: str, new: Path, facts: dict[str, Any]) -> Compiled:
        artifact = self._artifact(digest)
        described = json.dumps({"facts": facts, "mac": self._mac(new, artifact, facts)})
        description = new.with_suffix(".json.new")
        description.write_text(described)
        new.replace(artifact)
        description.replace(artifact.with_suffix(".json"))
        return _compiled(artifact, facts)

    def _verified(self, digest: str) -> Compiled | None:
        """What is in the cache, if it is whole and ours."""
        artifact = self._artifact(digest)
        try:
            raw = json.loads(artifact.with_suffix(".json").read_bytes())
            facts, mac = raw["facts"], raw["mac"]
            if hmac.compare_digest(mac, self._mac(artifact, artifact, facts)):
                return _compiled(artifact, facts)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        log.warning("compiled code is damaged or not ours, compiling again", artifact=artifact.name)
        return None

    def _artifact(self, digest: str) -> Path:
        return self._directory / f"{_hex(digest)}-{self._engine}.cwasm"

    def _mac(self, content: Path, artifact: Path, facts: dict[str, Any]) -> str:
        """Proof that `content` was written by this cache, as what `artifact` and the facts say."""
        mac = hashlib.blake2b(json.dumps([artifact.name, facts], sort_keys=True).encode(), key=self._key)
        with content.open("rb") as file:
            while block := file.read(1 << 20):
                mac.update(block)
        return mac.hexdigest()


def _compiled(artifact: Path, facts: dict[str, Any]) -> Compiled:
    return Compiled(
        artifact=artifact,
        kind=ModuleKind(facts["kind"]),
        imports=tuple(Item(*item) for item in facts["imports"]),
        exports=tuple(Item(*item) for item in facts["exports"]),
    )


def _stamp(file: Path) -> Stamp | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _engine() -> str:
    """Stands for all that compiled code depends on beside its source."""
    parts = (importlib.metadata.version("wasmtime"), ENGINE_SETTINGS, platform.machine(), _cpu_flags())
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _cpu_flags() -> str:
    with Path("/proc/cpuinfo").open() as lines:
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _key(file: Path) -> bytes:
    try:
        key = file.read_bytes()
    except FileNotFoundError:
        key = b""
    if len(key) != _KEY_BYTES:
        key = secrets.token_bytes(_KEY_BYTES)
        new = file.with_suffix(".new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(key)
        new.replace(file)
    return key
