"""The wasmtime engine, the same for compiling and for running."""

from __future__ import annotations

import re
import resource
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

from wasmlet.runtime.capi import address
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
    """A compiled file, ready to be instantiated: addresses of what the C API takes, and who keeps them valid."""

    engine: int
    # A pre-linked module, or a component.
    program: int
    # Of components only.
    linker: int
    run_export: int
    # File descriptors for a guest to close: all but its own and those that its memories are mapped from.
    not_needed: tuple[tuple[int, int], ...]
    owners: tuple[object, ...]


class StartError(Exception):
    """A program cannot start; the message is for the user."""


def sentence(error: Exception) -> str:
    """An error of wasmtime with its causes in one line."""
    causes = [line.strip() for line in str(error).replace("\nCaused by:\n", "\n").splitlines()]
    return ": ".join(re.sub(r"^\d+: ", "", cause) for cause in causes if cause)


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
            StartError: it is no program, or needs what there is not.
            WasmtimeError: the file is not of this engine.
        """
        before = _open_fds()
        if kind is ModuleKind.CORE:
            module = Module.deserialize_file(self._engine, str(artifact))
            linked = self._link(module)
            _demand_entry(module)
            return Loaded(address(self._engine), address(linked), 0, 0, _gaps(_open_fds() - before), (linked,))
        program = component.Component.deserialize_file(self._engine, str(artifact))
        fds = _gaps(_open_fds() - before)
        run = _run_export(program)
        if run is None:
            raise StartError('the component does not export "wasi:cli/run": it is a library or a service, no command')
        linker = address(self._component)
        return Loaded(address(self._engine), address(program), linker, address(run), fds, (program, run))

    def _link(self, module: Module) -> InstancePre:
        try:
            return self._core.instantiate_pre(module)
        except WasmtimeError as error:
            missing = [f'"{i.module}" "{i.name}"' for i in module.imports if not self._defines(i)]
            if not missing:
                raise StartError(f"cannot link the module: {sentence(error)}") from error
            what = "an unknown import" if len(missing) == 1 else f"{len(missing)} unknown imports"
            raise StartError(f"the module needs {what}: {', '.join(missing)}") from error

    def _defines(self, item: ImportType) -> bool:
        try:
            self._core.get(Store(self._engine), item.module, item.name or "")
        except WasmtimeError:
            return False
        return True


def _demand_entry(module: Module) -> None:
    entry = next((export.type for export in module.exports if export.name == CORE_ENTRY), None)
    if not isinstance(entry, FuncType):
        raise StartError(f'the module exports no function "{CORE_ENTRY}": it is a library, not a program')
    if entry.params or entry.results:
        raise StartError(f'the module\'s "{CORE_ENTRY}" takes or returns values: it is not that of a program')


def _open_fds() -> set[int]:
    listed = list(Path("/proc/self/fd").iterdir())
    # The listing itself was open while it was made.
    return {int(entry.name) for entry in listed if entry.is_symlink()}


def _gaps(fds: set[int]) -> tuple[tuple[int, int], ...]:
    """The ranges of file descriptors, each without its end, that hold neither stdio nor these."""
    firsts = [3, *(fd + 1 for fd in sorted(fds))]
    ends = [*sorted(fds), resource.getrlimit(resource.RLIMIT_NOFILE)[0]]
    return tuple((first, end) for first, end in zip(firsts, ends, strict=True) if first < end)


def _run_export(program: component.Component) -> component.ExportIndex | None:
    for interface in _RUN_INTERFACES:
        index = program.get_export_index(interface)
        if index is not None:
            return program.get_export_index("run", index)
    return None
