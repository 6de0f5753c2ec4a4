"""The gRPC server: where it listens, who may connect, which services it has."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from wasmlet_contract.virtualkubelet.provider.v1 import (
    node_pb2,
    node_pb2_grpc,
    provider_pb2,
    provider_pb2_grpc,
)
from wasmlet_contract.wasmlet.v1 import images_pb2, images_pb2_grpc

from wasmlet.api.errors import ErrorInterceptor
from wasmlet.api.images import ImageService
from wasmlet.api.node import NodeService
from wasmlet.api.pods import ProviderService

# A request carries a pod (up to 1.5 MiB) with all its ConfigMaps and Secrets (up to 1 MiB each).
MAX_REQUEST_BYTES = 64 * 1024 * 1024
# The kernel's limit of a socket's path.
_MAX_UNIX_PATH = 107
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ListenError(Exception):
    """The server cannot listen where, or as, it is told to; the message says what to do."""


@dataclass(frozen=True, slots=True)
class TLS:
    """Files of the server's identity, and of the CA whose clients it lets in."""

    certificate: Path
    key: Path
    client_ca: Path


@dataclass(frozen=True, slots=True)
class Services:
    """What the server offers."""

    provider: ProviderService
    node: NodeService
    images: ImageService


async def start(listen: str, services: Services, tls: TLS | None, *, insecure: bool) -> grpc.aio.Server:
    """Start serving at `unix:///PATH` (mode 0600) or `tcp://HOST:PORT` (mutual TLS, or insecure on loopback).

    Raises:
        ListenError
    """
    server = grpc.aio.server(
        interceptors=[ErrorInterceptor()],
        options=[("grpc.max_receive_message_length", MAX_REQUEST_BYTES), ("grpc.so_reuseport", 0)],
    )
    provider_pb2_grpc.add_ProviderServiceServicer_to_server(services.provider, server)
    node_pb2_grpc.add_NodeServiceServicer_to_server(services.node, server)
    images_pb2_grpc.add_ImageServiceServicer_to_server(services.images, server)
    names = [
        provider_pb2.DESCRIPTOR.services_by_name["ProviderService"].full_name,
        node_pb2.DESCRIPTOR.services_by_name["NodeService"].full_name,
        images_pb2.DESCRIPTOR.services_by_name["ImageService"].full_name,
    ]
    await _add_standard_services(server, names)
    url = urlsplit(listen)
    try:
        match url.scheme:
            case "unix":
                _bind_unix(server, Path(url.path))
            case "tcp":
                _bind_tcp(server, url.hostname or "", url.port or 0, tls, insecure=insecure)
            case _:
                raise ListenError(f'cannot listen on "{listen}": expected unix:///PATH or tcp://HOST:PORT')
    except (RuntimeError, ValueError, OSError) as error:
        raise ListenError(f"cannot listen on {listen}: {error}") from error
    await server.start()
    return server


async def _add_standard_services(server: grpc.aio.Server, names: Sequence[str]) -> None:
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for name in ("", *names):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection((*names, health_name, reflection.SERVICE_NAME), server)


def _bind_unix(server: grpc.aio.Server, path: Path) -> None:
    if len(os.fsencode(path)) > _MAX_UNIX_PATH:
        raise ListenError(
            f"the socket path {path} is longer than {_MAX_UNIX_PATH} bytes; choose a shorter one with --listen"
        )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_stale(path)
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix://{path}")
    finally:
        os.umask(before)


def _remove_stale(path: Path) -> None:
    """Remove the socket of a server that is gone; one that answers is left alone."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise ListenError(f"another server answers on {path}; stop it, or choose another socket with --listen")


def _bind_tcp(server: grpc.aio.Server, host: str, port: int, tls: TLS | None, *, insecure: bool) -> None:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if tls is not None:
        server.add_secure_port(address, _credentials(tls))
    elif not insecure:
        raise ListenError(
            "TCP needs mutual TLS: give --tls-cert, --tls-key and --tls-client-ca, "
            "or --insecure to listen without it on loopback"
        )
    elif host not in _LOOPBACK:
        raise ListenError(
            f"--insecure is for loopback only, and {host} is not; give --tls-cert, --tls-key and --tls-client-ca"
        )
    else:
        server.add_insecure_port(address)


def _credentials(tls: TLS) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.certificate.read_bytes())],
        root_certificates=tls.client_ca.read_bytes(),
        require_client_auth=True,
    )
