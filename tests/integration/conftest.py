"""A real server for each test that asks for one; whatever it leaves behind fails the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from support.server import Client, Server, connected
from wasmlet_contract.virtualkubelet.provider.v1 import provider_pb2


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    await stop_clean(server)


@pytest_asyncio.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connected(server.address) as client:
        yield client


async def stop_clean(server: Server) -> None:
    """Delete every pod, stop the server, and see that nothing is left: no process, no folder of a pod, no log."""
    assert server.process is not None
    assert server.process.poll() is None, f"the server died:\n{server.log.read_text()[-4000:]}"
    async with connected(server.address) as client, asyncio.timeout(30):
        remaining = {pod.metadata.uid for pod in await client.pods()}
        for uid in remaining:
            await client.provider.DeletePod(provider_pb2.DeletePodRequest(uid=uid, grace_period_seconds=0))
        while await client.pods():
            await asyncio.sleep(0.02)
    assert server.stop() == 0
    assert list((server.state_dir / "pods").iterdir()) == []
    assert list((server.state_dir / "logs").glob("*")) == []
    async with asyncio.timeout(10):
        while server.processes():
            await asyncio.sleep(0.02)
    assert '"level": "error"' not in server.log.read_text()
