"""From the domain's errors to gRPC's, in one place."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.rpc import error_details_pb2, status_pb2

from wasmlet.images.store import ImageNotFoundError
from wasmlet.pods.logs import ContainerNotFoundError, NotStartedError
from wasmlet.pods.manager import PodNotFoundError
from wasmlet.pods.validation import InvalidRequestError, Violation
from wasmlet.runtime.spec import CompileError

log = structlog.get_logger()

Handler = grpc.RpcMethodHandler[Any, Any]

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class NotBuiltError(Exception):
    """The method is in the contract, and this version does not offer it: UNIMPLEMENTED."""


class ImageInUseError(Exception):
    """An image that is to be removed is used by a pod."""


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Answers a call that raised with the status that the contract promises; a defect is INTERNAL, and is logged."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        wrap = _streaming if handler.response_streaming else _unary
        arity = {False: "unary", True: "stream"}
        kind = f"{arity[handler.request_streaming]}_{arity[handler.response_streaming]}"
        make: Callable[..., Handler] = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            wrap(getattr(handler, kind), handler_call_details.method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _unary(call: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
    async def wrapped(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await call(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _abort(context, error, method)

    return wrapped


def _streaming(call: Callable[..., AsyncIterator[Any]], method: str) -> Callable[..., AsyncIterator[Any]]:
    async def wrapped(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for response in call(request, context):
                yield response
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _abort(context, error, method)

    return wrapped


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception, method: str) -> None:
    violations: tuple[Violation, ...] = ()
    match error:
        case InvalidRequestError():
            code, violations = grpc.StatusCode.INVALID_ARGUMENT, error.violations
        case CompileError():
            code = grpc.StatusCode.INVALID_ARGUMENT
        case PodNotFoundError() | ContainerNotFoundError() | ImageNotFoundError():
            code = grpc.StatusCode.NOT_FOUND
        case NotBuiltError():
            code = grpc.StatusCode.UNIMPLEMENTED
        case NotStartedError() | ImageInUseError():
            code = grpc.StatusCode.FAILED_PRECONDITION
        case OSError() if error.errno in _DISK_FULL:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
        case _:
            log.error("a call failed", method=method, exc_info=error)
            code = grpc.StatusCode.INTERNAL
    message = str(error) or type(error).__name__
    status = status_pb2.Status(code=code.value[0], message=message)
    if violations:
        details = error_details_pb2.BadRequest()
        for violation in violations:
            details.field_violations.add(field=violation.field, description=violation.description)
        status.details.add().Pack(details)
    await context.abort(code, message, (("grpc-status-details-bin", status.SerializeToString()),))
