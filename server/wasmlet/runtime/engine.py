"""The wasmtime engine, the same for compiling and for running."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wasmtime import (
    Config,
    Engine,
    FuncType,
    ImportType,
    InstancePre,
    Linker,
    Module,
    Store,
    ValType,
    WasmtimeError,
    component,
)

from wasmlet.runtime.spec import ENGINE_SETTINGS, ModuleKind

# What a WASI command exports: https://github.com/WebAssembly/WASI/blob/main/legacy/application-abi.md
CORE_ENTRY = "_start"
# wasi:cli/run in every release of WASI 0.2.
_RUN_INTERFACES = tuple(f"wasi:cli/run@0.2.{patch}" for patch in range(16))


def make_engine() -> Engine:
    """An engine with wasmlet's settings."""
    config = Config()
    for name, value in ENGINE_SETTINGS.items():
        setattr(config, name, value)
    return Engine(config)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A compiled file, ready to be instantiated."""

    engine: Engine
    program: InstancePre | component.Component
    # Files that memories are mapped from, copy on write, when the program is instantiated.
    fds: tuple[int, ...]
    # For components, which have no pre-linked form here.
    linker: component.Linker | None = None
    run_export: component.ExportIndex | None = None


def sentence(error: Exception) -> str:
    """An error of wasmtime with its causes in one line."""
    causes = [line.strip() for line in str(error).replace("\nCaused by:\n", "\n").splitlines()]
    return ": ".join(re.sub(r"^\d+: ", "", cause) for cause in causes if cause)


class MissingImportsError(Exception):
    """A module needs functions that WASI preview 1 does not have."""

    def __init__(self, items: Sequence[ImportType]) -> None:
        names = ", ".join(f'"{item.module}" "{item.name}"' for item in items)
        what = "an unknown import" if len(items) == 1 else f"{len(items)} unknown imports"
        super().__init__(f"the module needs {what}: {names}")


class Loader:
    """Maps compiled files into memory and links them with WASI."""

    def __init__(self, exit_process: object) -> None:
        self._engine = make_engine()
        self._core = Linker(self._engine)
        self._core.allow_shadowing = True
        self._core.define_wasi()
        # wasmtime's own proc_exit loses codes above 125.
        self._core.define_func(
            "wasi_snapshot_preview1",
            "proc_exit",
            FuncType([ValType.i32()], []),
            exit_process,  # type: ignore[arg-type]
        )
        self._component = component.Linker(self._engine)
        self._component.add_wasip2()

    def load(self, artifact: Path, kind: ModuleKind) -> Loaded:
        """
        Raises:
            WasmtimeError: the file is not of this engine, or an import is of another type.
            MissingImportsError
        """
        before = open_fds()
        if kind is ModuleKind.CORE:
            module = Module.deserialize_file(self._engine, str(artifact))
            linked = self._link(module)
            return Loaded(self._engine, linked, tuple(open_fds() - before))
        program = component.Component.deserialize_file(self._engine, str(artifact))
        fds = tuple(open_fds() - before)
        return Loaded(self._engine, program, fds, self._component, _run_export(program))

    def _link(self, module: Module) -> InstancePre:
        try:
            return self._core.instantiate_pre(module)
        except WasmtimeError:
            missing = [item for item in module.imports if not self._defines(item)]
            if missing:
                raise MissingImportsError(missing) from None
            raise

    def _defines(self, item: ImportType) -> bool:
        try:
            self._core.get(Store(self._engine), item.module, item.name or "")
        except WasmtimeError:
            return False
        return True


def open_fds() -> set[int]:
    """The file descriptors of this process."""
    listed = list(Path("/proc/self/fd").iterdir())
    # The listing itself was open while it was made.
    return {int(entry.name) for entry in listed if entry.is_symlink()}


def _run_export(program: component.Component) -> component.ExportIndex | None:
    for interface in _RUN_INTERFACES:
        index = program.get_export_index(interface)
        if index is not None:
            return program.get_export_index("run", index)
    return None
