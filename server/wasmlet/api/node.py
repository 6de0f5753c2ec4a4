"""NodeService: what the node is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from wasmlet_contract.k8s.core.v1 import node_pb2 as k8s
from wasmlet_contract.virtualkubelet.provider.v1 import node_pb2, node_pb2_grpc

CONTRACT_VERSION = "1.0"
PROVIDER_NAME = "wasmlet"


class NodeService(node_pb2_grpc.NodeServiceServicer):
    def __init__(self, node: k8s.Node, version: str) -> None:
        self._node = node
        self._version = version

    async def GetNode(
        self, request: node_pb2.GetNodeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> node_pb2.GetNodeResponse:
        return node_pb2.GetNodeResponse(node=self._node)

    async def Ping(
        self, request: node_pb2.PingRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> node_pb2.PingResponse:
        return node_pb2.PingResponse(
            provider_name=PROVIDER_NAME, provider_version=self._version, contract_version=CONTRACT_VERSION
        )

    async def NotifyNodeStatus(
        self, request: node_pb2.NotifyNodeStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[node_pb2.NotifyNodeStatusResponse]:
        yield node_pb2.NotifyNodeStatusResponse(node=self._node)
        # Nothing about the node changes as yet while the provider runs.
        await asyncio.Event().wait()
