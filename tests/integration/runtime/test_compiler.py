"""The cache of compiled code: made once, and never anything loaded that is not ours."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
from integration.runtime.harness import Node, Program
from wasmlet.runtime.compiler import CompileCache, Compiled, Item
from wasmlet.runtime.spec import CompileError, ModuleKind
from wasmtime import wat2wasm

TEXT = '(module (import "wasi_snapshot_preview1" "fd_close" (func (param i32) (result i32))) (func (export "_start")))'


@pytest.fixture
def cache(tmp_path: Path) -> CompileCache:
    return CompileCache(tmp_path / "cache", max_concurrent=2)


@pytest.fixture
def module(tmp_path: Path) -> Path:
    return write(tmp_path / "m.wasm", wat2wasm(TEXT))


def write(path: Path, data: bytes | bytearray) -> Path:
    path.write_bytes(data)
    return path


def digest(module: Path) -> str:
    return f"sha256:{hashlib.sha256(module.read_bytes()).hexdigest()}"


def again(cache: CompileCache) -> CompileCache:
    """The cache as the next process finds it."""
    return CompileCache(cache._directory, max_concurrent=2)


async def test_what_is_compiled_is_found_again(cache: CompileCache, module: Path) -> None:
    first = await cache.compile(module, digest(module))
    assert first.kind is ModuleKind.CORE
    assert first.imports == (Item("wasi_snapshot_preview1", "fd_close", "func"),)
    assert first.exports == (Item("", "_start", "func"),)
    assert await cache.compile(module, digest(module)) == first
    assert cache.compilations == 1
    later = again(cache)
    assert await later.compile(module, digest(module)) == first
    assert later.compilations == 0
    assert (cache._directory / "key").stat().st_mode & 0o777 == 0o600


async def test_a_component_is_told_apart(cache: CompileCache, tmp_path: Path) -> None:
    module = write(tmp_path / "c.wasm", wat2wasm("(component)"))
    assert (await cache.compile(module, digest(module))).kind is ModuleKind.COMPONENT


async def test_all_who_ask_at_once_wait_for_one_compilation(cache: CompileCache, module: Path) -> None:
    waiting = [asyncio.create_task(cache.compile(module, digest(module))) for _ in range(10)]
    await asyncio.sleep(0)
    # Whoever gives up, the first included, ends it for nobody.
    waiting[0].cancel()
    waiting[5].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(isinstance(result, Compiled) for result in results) == 8
    assert cache.compilations == 1


async def test_only_so_many_compile_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = CompileCache(tmp_path / "cache", max_concurrent=2)
    running, most = 0, 0
    real = cache._compile

    async def counted(module: Path, digest: str) -> Compiled:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await real(module, digest)
        finally:
            running -= 1

    monkeypatch.setattr(cache, "_compile", counted)
    modules = [write(tmp_path / f"{n}.wasm", wat2wasm(f'(module (func (export "f{n}")))')) for n in range(5)]
    await asyncio.gather(*(cache.compile(module, digest(module)) for module in modules))
    assert most == 2
    assert cache.compilations == 5


DAMAGES = {
    "a flipped bit": lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:],
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
    "something else": lambda data: b"\x7fELF" + os.urandom(5000),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_code_is_compiled_again(cache: CompileCache, module: Path, damage: str) -> None:
    good = await cache.compile(module, digest(module))
    content = good.artifact.read_bytes()
    write(good.artifact, DAMAGES[damage](content))  # type: ignore[no-untyped-call]
    # This process remembers which file it has verified, the next one verifies.
    for user in (cache, again(cache)):
        assert (await user.compile(module, digest(module))).artifact == good.artifact
        assert good.artifact.read_bytes()[:4] == content[:4]
        assert user.compilations == (2 if user is cache else 0)


async def test_code_of_another_cache_is_never_loaded(cache: CompileCache, module: Path, tmp_path: Path) -> None:
    other = CompileCache(tmp_path / "other", max_concurrent=1)
    foreign = await other.compile(module, digest(module))
    cache._directory.mkdir(exist_ok=True)
    for name in (foreign.artifact.name, foreign.artifact.with_suffix(".json").name):
        write(cache._directory / name, (tmp_path / "other" / name).read_bytes())
    await cache.compile(module, digest(module))
    assert cache.compilations == 1


async def test_code_of_another_module_is_never_loaded(cache: CompileCache, module: Path, tmp_path: Path) -> None:
    first = await cache.compile(module, digest(module))
    other = write(tmp_path / "other.wasm", wat2wasm('(module (func (export "_start") unreachable))'))
    second = await cache.compile(other, digest(other))
    for suffix in (".cwasm", ".json"):
        write(second.artifact.with_suffix(suffix), first.artifact.with_suffix(suffix).read_bytes())
    later = again(cache)
    assert (await later.compile(other, digest(other))).imports == ()
    assert later.compilations == 1


async def test_description_that_is_nonsense(cache: CompileCache, module: Path) -> None:
    good = await cache.compile(module, digest(module))
    for nonsense in (b"", b"null", b"[]", b"{}", b'{"facts":null,"mac":1}', b"\xff"):
        write(good.artifact.with_suffix(".json"), nonsense)
        later = again(cache)
        await later.compile(module, digest(module))
        assert later.compilations == 1, nonsense


async def test_another_engine_has_code_of_its_own(
    cache: CompileCache, module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await cache.compile(module, digest(module))
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "49.0.0")
    later = again(cache)
    second = await later.compile(module, digest(module))
    assert later.compilations == 1
    assert first.artifact != second.artifact
    # What the engine before has left is of no use any more.
    assert not first.artifact.exists()


async def test_a_file_of_another_wasmtime_does_not_start(node: Node, c_module: Path, tmp_path: Path) -> None:
    """Even past the cache, wasmtime itself refuses what it has not compiled."""
    foreign = tmp_path / "foreign.cwasm"
    # Its package ships the program without the right to execute it.
    package = importlib.util.find_spec("wasmtime_cli")
    assert package is not None
    native = tmp_path / "wasmtime"
    shutil.copyfile(Path(str(package.origin)).with_name("wasmtime"), native)
    native.chmod(0o755)
    process = await asyncio.create_subprocess_exec(native, "compile", c_module, "-o", foreign)
    assert await process.wait() == 0
    ended = await node.run(node.spec(Program(foreign, ModuleKind.CORE), "exit", "0"))
    assert ended.code == 128
    assert "version" in ended.message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a WebAssembly file: it is empty"),
        (b"\0as", "not a WebAssembly file: it begins with 00 61 73 instead of 00 61 73 6d"),
        (b"\0asm\1", "not a WebAssembly file: it ends after its first bytes"),
        (b"hello world", "not a WebAssembly file: it begins with 68 65 6c 6c instead of 00 61 73 6d"),
        (b"\x7fELF\2\1\1\0", "not a WebAssembly file: it is an ELF program"),
        (
            b"\0asm\2\0\0\0",
            "a WebAssembly file of a version that is not supported: its preamble is 00 61 73 6d 02 00 00 00",
        ),
        (b"(module)", "not a WebAssembly file: it is WebAssembly text; compile it first, with wat2wasm"),
        (
            bytes(wat2wasm(TEXT))[:-3],
            "not a valid WebAssembly module: failed to parse WebAssembly module: unexpected end-of-file",
        ),
    ],
)
async def test_what_is_no_webassembly(cache: CompileCache, tmp_path: Path, data: bytes, message: str) -> None:
    module = write(tmp_path / "bad.wasm", data)
    with pytest.raises(CompileError, match=f"^{message}"):
        await cache.compile(module, digest(module))
    assert [path.name for path in cache._directory.iterdir()] == ["key"]


async def test_a_file_that_is_gone(cache: CompileCache, module: Path) -> None:
    known = digest(module)
    module.unlink()
    with pytest.raises(CompileError, match="No such file"):
        await cache.compile(module, known)


async def test_a_digest_that_is_none(cache: CompileCache, module: Path) -> None:
    with pytest.raises(CompileError, match=r"'\.\./x' is no digest"):
        await cache.compile(module, "../x")


async def test_what_a_crash_left_is_cleared_and_what_is_removed_is_gone(cache: CompileCache, module: Path) -> None:
    compiled = await cache.compile(module, digest(module))
    assert cache.size(digest(module)) == compiled.artifact.stat().st_size
    write(cache._directory / "abc.new", b"half")
    later = again(cache)
    later.remove(digest(module))
    assert [path.name for path in cache._directory.iterdir()] == ["key"]
    assert later.size(digest(module)) == 0
    await cache.compile(module, digest(module))
    assert cache.compilations == 2


async def test_the_description_tells_nothing_secret(cache: CompileCache, module: Path) -> None:
    compiled = await cache.compile(module, digest(module))
    described = json.loads(compiled.artifact.with_suffix(".json").read_text())
    assert set(described) == {"facts", "mac"}
    assert (cache._directory / "key").read_bytes().hex() not in str(described)
