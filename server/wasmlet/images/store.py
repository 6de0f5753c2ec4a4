"""Images on disk.

images/blobs/HEX        a WebAssembly file, named by its SHA-256
images/names/HEX.json   one name and the file it stands for; HEX is the SHA-256 of the name
images/incoming/        files that are being received
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from wasmlet.images.names import normalize
from wasmlet.runtime.compiler import CompileCache
from wasmlet.runtime.spec import ModuleKind

log = structlog.get_logger()


class ImageNotFoundError(Exception):
    """There is no image of that name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A name of the store and the WebAssembly file that it stands for."""

    name: str
    # `sha256:` and the hex digest of the file.
    id: str
    # Bytes.
    size: int
    kind: ModuleKind
    created_at: datetime
    path: Path


class ImageStore:
    """Holds images by name. One process at a time works on a directory."""

    def __init__(self, directory: Path, compiler: CompileCache) -> None:
        self._compiler = compiler
        self._blobs = directory / "blobs"
        self._names = directory / "names"
        self._incoming = directory / "incoming"
        self._images: dict[str, Image] = {}
        self._listeners: list[Callable[[], None]] = []
        for folder in (self._blobs, self._names, self._incoming):
            folder.mkdir(parents=True, exist_ok=True)
        for leftover in self._incoming.iterdir():
            leftover.unlink()
        for file in self._names.iterdir():
            self._load(file)

    def on_import(self, listener: Callable[[], None]) -> None:
        """Have `listener` called after each import: pods that wait for an image look again."""
        self._listeners.append(listener)

    def list(self) -> list[Image]:
        return sorted(self._images.values(), key=lambda image: image.name)

    def find(self, name: str) -> Image | None:
        """The image of a name, with or without a tag, or of an image ID.

        Raises:
            ValueError: it can be neither.
        """
        if name.startswith("sha256:"):
            return next((image for image in self._images.values() if image.id == name), None)
        return self._images.get(normalize(name))

    async def add(self, name: str, chunks: AsyncIterable[bytes], compiling: Callable[[], None]) -> Image:
        """Store a WebAssembly file under a name and compile it; `compiling` is called when all bytes are here.

        Raises:
            ValueError: it is not an image name.
            CompileError: it is not WebAssembly that can run here.
            OSError: the disk is full, or worse.
        """
        name = normalize(name)
        incoming = self._incoming / secrets.token_hex(8)
        try:
            digest, size = await _receive(chunks, incoming)
            compiling()
            compiled = await self._compiler.compile(incoming, f"sha256:{digest}")
            incoming.replace(self._blobs / digest)
        finally:
            incoming.unlink(missing_ok=True)
        image = Image(
            name=name,
            id=f"sha256:{digest}",
            size=size,
            kind=compiled.kind,
            created_at=datetime.now(UTC),
            path=self._blobs / digest,
        )
        before = self._images.get(name)
        self._save(image)
        if before is not None and before.id != image.id:
            await self._collect(before)
        for listener in self._listeners:
            listener()
        return image

    async def remove(self, name: str) -> None:
        """Remove a name, and with the last one its file and compiled code.

        Raises:
            ImageNotFoundError: there is no such image.
        """
        image = self.find(name)
        if image is None:
            raise ImageNotFoundError(f'image "{name}" not found')
        self._file(image.name).unlink(missing_ok=True)
        del self._images[image.name]
        await self._collect(image)

    async def _collect(self, image: Image) -> None:
        if any(other.id == image.id for other in self._images.values()):
            return
        image.path.unlink(missing_ok=True)
        await asyncio.to_thread(self._compiler.remove, image.id)

    def _file(self, name: str) -> Path:
        return self._names / f"{hashlib.sha256(name.encode()).hexdigest()}.json"

    def _save(self, image: Image) -> None:
        file = self._file(image.name)
        temporary = self._incoming / secrets.token_hex(8)
        temporary.write_text(
            json.dumps(
                {
                    "name": image.name,
                    "id": image.id,
                    "size": image.size,
                    "kind": image.kind,
                    "created_at": image.created_at.isoformat(),
                }
            )
        )
        temporary.replace(file)
        self._images[image.name] = image

    def _load(self, file: Path) -> None:
        try:
            raw = json.loads(file.read_bytes())
            path = self._blobs / raw["id"].removeprefix("sha256:")
            image = Image(
                name=raw["name"],
                id=raw["id"],
                size=raw["size"],
                kind=ModuleKind(raw["kind"]),
                created_at=datetime.fromisoformat(raw["created_at"]),
                path=path,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("removing an unreadable image name", file=file.name, error=str(error))
            file.unlink()
            return
        if not path.exists():
            log.warning("removing an image name whose file is gone", name=image.name)
            file.unlink()
            return
        self._images[image.name] = image


async def _receive(chunks: AsyncIterable[bytes], file: Path) -> tuple[str, int]:
    """Write chunks to a file; returns the hex SHA-256 and the size."""
    digest, size = hashlib.sha256(), 0
    with file.open("xb") as out:
        async for chunk in chunks:
            digest.update(chunk)
            out.write(chunk)
            size += len(chunk)
    return digest.hexdigest(), size
