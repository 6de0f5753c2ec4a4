"""wasmtime's C API as a forked child calls it, without the classes of wasmtime's Python package.

A child shares its memory with the spawner until one of them writes, and Python writes to all it touches, because it
counts references. By way of the package's classes a child came to own 1.8 MB, by way of this 0.6 MB. Whatever can be
made before the fork is made here, at import: prototypes, and the room for results, which a child needs once.

https://docs.wasmtime.dev/c-api/
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, addressof, c_bool, c_char_p, c_int, c_size_t, c_void_p
from typing import Any

from wasmtime import Trap, WasmtimeError
from wasmtime import _ffi as ffi
from wasmtime._managed import Managed


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    return ctypes.CFUNCTYPE(result, *arguments)((name, ffi.dll))


wasi_config_new = _function("wasi_config_new", c_void_p)
wasi_config_set_argv = _function("wasi_config_set_argv", c_bool, c_void_p, c_size_t, c_void_p)
wasi_config_set_env = _function("wasi_config_set_env", c_bool, c_void_p, c_size_t, c_void_p, c_void_p)
wasi_config_inherit = tuple(
    _function(f"wasi_config_inherit_{s}", None, c_void_p) for s in ("stdin", "stdout", "stderr")
)
wasi_config_preopen_dir = _function("wasi_config_preopen_dir", c_bool, c_void_p, c_char_p, c_char_p, c_bool)
store_new = _function("wasmtime_store_new", c_void_p, c_void_p, c_void_p, c_void_p)
store_context = _function("wasmtime_store_context", c_void_p, c_void_p)
context_set_wasi = _function("wasmtime_context_set_wasi", c_void_p, c_void_p, c_void_p)
instance_pre_instantiate = _function(
    "wasmtime_instance_pre_instantiate", c_void_p, c_void_p, c_void_p, c_void_p, c_void_p
)
instance_export_get = _function(
    "wasmtime_instance_export_get", c_bool, c_void_p, c_void_p, c_char_p, c_size_t, c_void_p
)
func_call = _function(
    "wasmtime_func_call", c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p
)
component_linker_instantiate = _function(
    "wasmtime_component_linker_instantiate", c_void_p, c_void_p, c_void_p, c_void_p, c_void_p
)
component_instance_get_func = _function(
    "wasmtime_component_instance_get_func", c_bool, c_void_p, c_void_p, c_void_p, c_void_p
)
component_func_call = _function(
    "wasmtime_component_func_call", c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t
)

_libc = ctypes.CDLL(None, use_errno=True)
# The C functions, because Python's own of signals convert to enums and back.
signal = ctypes.CFUNCTYPE(c_void_p, c_int, c_void_p)(("signal", _libc))
sigprocmask = ctypes.CFUNCTYPE(c_int, c_int, c_void_p, c_void_p)(("sigprocmask", _libc))
prctl = ctypes.CFUNCTYPE(c_int, c_int, c_size_t, c_size_t, c_size_t, c_size_t)(("prctl", _libc))

# As large as any C library's set of signals.
_no_signals = ctypes.create_string_buffer(128)
_instance = ffi.wasmtime_instance_t()
_export = ffi.wasmtime_extern_t()
_component_instance = ffi.wasmtime_component_instance_t()
_component_func = ffi.wasmtime_component_func_t()
trap = c_void_p()
result = ffi.wasmtime_component_val_t()

NO_SIGNALS = addressof(_no_signals)
INSTANCE = addressof(_instance)
EXPORT = addressof(_export)
FUNC = addressof(_export.of)
TRAP = addressof(trap)
COMPONENT_INSTANCE = addressof(_component_instance)
COMPONENT_FUNC = addressof(_component_func)
RESULT = addressof(result)


def address(owner: Managed[Any]) -> int:
    """The address of what an object of wasmtime's package owns."""
    return ctypes.cast(owner.ptr(), c_void_p).value or 0


def error_at(pointer: int) -> WasmtimeError:
    """The error (an `ExitTrap`, perhaps) that a C function has returned."""
    return WasmtimeError._from_ptr(ctypes.cast(pointer, POINTER(ffi.wasmtime_error_t)))


def trap_that_came() -> Trap:
    """The trap that a C function has left in TRAP."""
    return Trap._from_ptr(ctypes.cast(trap, POINTER(ffi.wasm_trap_t)))
