"""Tells what a file is by its first bytes."""

from __future__ import annotations

from wasmlet.runtime.spec import CompileError, ModuleKind

# Preamble of a core module, and of a component: https://github.com/WebAssembly/component-model/blob/main/design/mvp/Binary.md
_MAGIC = b"\0asm"
_CORE = _MAGIC + b"\x01\0\0\0"
_COMPONENT = _MAGIC + b"\x0d\0\x01\0"
_OTHERS = {
    b"\x7fELF": "an ELF program",
    b"#!": "a script",
    b"\x1f\x8b": "a gzip archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"PK\x03\x04": "a zip archive",
    b"(module": "WebAssembly text; compile it first, with wat2wasm",
    b"(compone": "WebAssembly text; compile it first, with wasm-tools",
}


def kind_of(head: bytes) -> ModuleKind:
    """What a file is that begins with `head`, its first eight bytes.

    Raises:
        CompileError: it is not WebAssembly, or of a version that is not supported; the message says what it is.
    """
    if head == _CORE:
        return ModuleKind.CORE
    if head == _COMPONENT:
        return ModuleKind.COMPONENT
    if not head:
        raise CompileError("not a WebAssembly file: it is empty")
    if head[:4] == _MAGIC:
        if len(head) < 8:
            raise CompileError("not a WebAssembly file: it ends after its first bytes")
        raise CompileError(f"a WebAssembly file of a version that is not supported: its preamble is {head.hex(' ')}")
    for start, what in _OTHERS.items():
        if head.startswith(start):
            raise CompileError(f"not a WebAssembly file: it is {what}")
    raise CompileError(f"not a WebAssembly file: it begins with {head[:4].hex(' ')} instead of 00 61 73 6d")
