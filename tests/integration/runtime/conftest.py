"""Real guests, compiled once, and a spawner for each test that must leave nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from integration.runtime.harness import Node, Program, compiled, open_fds, processes_of, until, until_async
from wasmlet.runtime.client import Spawner
from wasmtime import wat2wasm

SOURCES = Path(__file__).parent / "guests"


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guests")


@pytest.fixture(scope="session")
def c_module(guests: Path) -> Path:
    module = guests / "c.wasm"
    target = ("-target", "wasm32-wasi", "-Os", "-s")
    subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", *target, "-o", str(module), str(SOURCES / "guest.c")], check=True
    )
    return module


@pytest.fixture(scope="session")
def c(c_module: Path) -> Program:
    return compiled(c_module)


@pytest.fixture(scope="session")
def go(guests: Path) -> Program:
    module = guests / "go.wasm"
    environment = {**os.environ, "GOOS": "wasip1", "GOARCH": "wasm", "GOFLAGS": ""}
    go = shutil.which("go")
    assert go is not None, "Go is not installed: it builds a guest of these tests"
    subprocess.run([go, "build", "-o", str(module), str(SOURCES / "guest.go")], env=environment, check=True)
    return compiled(module)


@pytest.fixture
def wat(tmp_path: Path) -> Callable[[str], Program]:
    """Compiles WebAssembly text."""

    def compile_text(text: str) -> Program:
        module = tmp_path / "text.wasm"
        module.write_bytes(wat2wasm(text))
        return compiled(module)

    return compile_text


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    fds = open_fds(os.getpid())
    # Longer than the address of a socket may be.
    node = Node(tmp_path / ("long-" * 24))
    yield node
    for process in await node.spawner.list():
        await node.spawner.forget(process.id)
    for process in await node.spawner.list():
        await node.spawner.kill(process.id, 9)
    await until_async(lambda: _nothing(node.spawner))
    assert list((node.state / "exits").iterdir()) == []
    assert list((node.state / "reports").iterdir()) == []
    (pump,) = node.children()
    for pid in (node.spawner_pid(), pump):
        assert len(open_fds(pid)) < 14, "descriptors are left open"
    await node.spawner.shutdown()
    await until(lambda: processes_of(node.state) == [])
    assert not (node.state / "spawner.sock").exists()
    assert open_fds(os.getpid()) == fds, "descriptors are left open"


async def _nothing(spawner: Spawner) -> bool:
    return await spawner.list() == []
