"""Compiles one file, in a process of its own: `python -m wasmlet.runtime.compile SOURCE TARGET`.

Prints what it found as JSON. What is wrong with the file goes to stderr, with exit code 1.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from wasmtime import (
    Engine,
    ExportType,
    FuncType,
    GlobalType,
    ImportType,
    MemoryType,
    Module,
    TableType,
    WasmtimeError,
    component,
)

from wasmlet.runtime.binary import kind_of
from wasmlet.runtime.engine import make_engine, sentence
from wasmlet.runtime.spec import CompileError, ModuleKind

# Compiling may use every processor, but not at the cost of what runs.
_NICE = 10
_CORE_KINDS = {FuncType: "func", MemoryType: "memory", TableType: "table", GlobalType: "global"}

Item = tuple[str, str, str]


def compile_file(source: Path, target: Path) -> dict[str, Any]:
    """Compile `source` into `target`; returns its kind, imports and exports.

    Raises:
        CompileError: the file is not WebAssembly that this engine takes.
    """
    data = source.read_bytes()
    kind = kind_of(data[:8])
    engine = make_engine()
    try:
        if kind is ModuleKind.CORE:
            code, imports, exports = _core(engine, data)
        else:
            code, imports, exports = _component(engine, data)
    except WasmtimeError as error:
        raise CompileError(f"not a valid WebAssembly {_NAMES[kind]}: {sentence(error)}") from error
    target.write_bytes(code)
    return {"kind": kind, "imports": imports, "exports": exports}


_NAMES = {ModuleKind.CORE: "module", ModuleKind.COMPONENT: "component"}


def _core(engine: Engine, data: bytes) -> tuple[bytearray, list[Item], list[Item]]:
    module = Module(engine, data)
    imports = [(i.module, i.name or "", _core_kind(i)) for i in module.imports]
    return module.serialize(), imports, [("", e.name, _core_kind(e)) for e in module.exports]


def _core_kind(item: ImportType | ExportType) -> str:
    return _CORE_KINDS.get(type(item.type), "other")


def _component(engine: Engine, data: bytes) -> tuple[bytearray, list[Item], list[Item]]:
    program = component.Component(engine, data)
    imports = [(name, "", _component_kind(item)) for name, item in program.type.imports(engine).items()]
    exports = [(name, "", _component_kind(item)) for name, item in program.type.exports(engine).items()]
    return program.serialize(), imports, exports


def _component_kind(item: object) -> str:
    name = type(item).__name__.lower()
    return next((kind for kind in ("instance", "component", "module", "func", "resource") if kind in name), "other")


def main() -> None:
    os.nice(_NICE)
    try:
        print(json.dumps(compile_file(Path(sys.argv[1]), Path(sys.argv[2]))))
    except (CompileError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
