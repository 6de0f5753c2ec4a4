"""ImageService: the image store over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from wasmlet_contract.wasmlet.v1 import images_pb2, images_pb2_grpc

from wasmlet.api.errors import ImageInUseError
from wasmlet.images.names import normalize
from wasmlet.images.store import Image, ImageNotFoundError, ImageStore
from wasmlet.pods.manager import PodManager
from wasmlet.pods.validation import InvalidRequestError, Violation
from wasmlet.runtime.compiler import CompileCache
from wasmlet.runtime.spec import ModuleKind

_KINDS = {
    ModuleKind.CORE: images_pb2.MODULE_KIND_CORE,
    ModuleKind.COMPONENT: images_pb2.MODULE_KIND_COMPONENT,
}
# Progress is told every so many bytes.
_STEP = 4 * 1024 * 1024

Context = grpc.aio.ServicerContext[Any, Any]


class ImageService(images_pb2_grpc.ImageServiceServicer):
    def __init__(self, images: ImageStore, compiler: CompileCache, pods: PodManager) -> None:
        self._images = images
        self._compiler = compiler
        self._pods = pods

    async def ImportImage(
        self, request_iterator: AsyncIterator[images_pb2.ImportImageRequest], context: Context
    ) -> AsyncIterator[images_pb2.ImportImageResponse]:
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("header"):
            raise InvalidRequestError([Violation("header", "must come in the first message")])
        header = first.header
        _check_name(header.name, "header.name")
        progress: asyncio.Queue[images_pb2.ImportImageResponse | None] = asyncio.Queue()
        received = 0

        async def chunks() -> AsyncIterator[bytes]:
            nonlocal received
            told = 0
            async for message in request_iterator:
                if not message.HasField("chunk"):
                    raise InvalidRequestError([Violation("chunk", "must come in every message after the first")])
                received += len(message.chunk)
                if received - told >= _STEP:
                    told = received
                    progress.put_nowait(
                        images_pb2.ImportImageResponse(
                            phase=images_pb2.ImportImageResponse.PHASE_RECEIVING, received=received
                        )
                    )
                yield message.chunk
            if header.size and received != header.size:
                description = f"{header.size} bytes were announced, {received} came"
                raise InvalidRequestError([Violation("header.size", description)])

        def compiling() -> None:
            progress.put_nowait(
                images_pb2.ImportImageResponse(phase=images_pb2.ImportImageResponse.PHASE_COMPILING, received=received)
            )

        adding = asyncio.create_task(self._images.add(header.name, chunks(), compiling))
        adding.add_done_callback(lambda _: progress.put_nowait(None))
        try:
            while (step := await progress.get()) is not None:
                yield step
            image = await adding
        finally:
            adding.cancel()
        yield images_pb2.ImportImageResponse(
            phase=images_pb2.ImportImageResponse.PHASE_DONE, received=received, image=self._message(image)
        )

    async def ListImages(
        self, request: images_pb2.ListImagesRequest, context: Context
    ) -> images_pb2.ListImagesResponse:
        return images_pb2.ListImagesResponse(images=[self._message(image) for image in self._images.list()])

    async def InspectImage(
        self, request: images_pb2.InspectImageRequest, context: Context
    ) -> images_pb2.InspectImageResponse:
        image = self._find(request.name)
        compiled = await self._compiler.compile(image.path, image.id)
        return images_pb2.InspectImageResponse(
            image=self._message(image),
            imports=[images_pb2.ModuleItem(module=i.module, name=i.name, kind=i.kind) for i in compiled.imports],
            exports=[images_pb2.ModuleItem(module=i.module, name=i.name, kind=i.kind) for i in compiled.exports],
        )

    async def RemoveImage(
        self, request: images_pb2.RemoveImageRequest, context: Context
    ) -> images_pb2.RemoveImageResponse:
        image = self._find(request.name)
        last = sum(other.id == image.id for other in self._images.list()) == 1
        if last and not request.force and self._pods.uses_image(image.id):
            raise ImageInUseError(f'image "{image.name}" is used by a pod; delete the pod first, or force the removal')
        await self._images.remove(image.name)
        return images_pb2.RemoveImageResponse()

    def _find(self, name: str) -> Image:
        if not name.startswith("sha256:"):
            _check_name(name, "name")
        image = self._images.find(name)
        if image is None:
            raise ImageNotFoundError(f'image "{name}" not found')
        return image

    def _message(self, image: Image) -> images_pb2.Image:
        message = images_pb2.Image(
            name=image.name,
            id=image.id,
            size=image.size,
            kind=_KINDS[image.kind],
            compiled_size=self._compiler.size(image.id),
        )
        message.created_at.FromDatetime(image.created_at)
        return message


def _check_name(name: str, field: str) -> None:
    if not name:
        raise InvalidRequestError([Violation(field, "is required")])
    try:
        normalize(name)
    except ValueError as error:
        raise InvalidRequestError([Violation(field, str(error))]) from error
