"""A Go program speaks to the provider with Kubernetes' own types: what the node shim stands on."""

import asyncio
import shutil
from pathlib import Path
from typing import Protocol

import pytest

GO_MODULE = Path(__file__).parents[2] / "client" / "node"
TEST = "TestProviderKeepsThePod"


class Server(Protocol):
    """What this test needs of the running provider."""

    @property
    def socket(self) -> Path: ...


@pytest.mark.timeout(600)  # The Go compiler may have to build Kubernetes' packages first.
async def test_a_corev1_pod_comes_back_equal(server: Server) -> None:
    if shutil.which("go") is None:
        pytest.fail("Go is not installed: this test needs a Go client.")
    command = ["go", "test", "-v", "-count=1", f"-run=^{TEST}$", "./contract", f"-socket={server.socket}"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=GO_MODULE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert f"--- PASS: {TEST}" in output.decode(), output.decode()
