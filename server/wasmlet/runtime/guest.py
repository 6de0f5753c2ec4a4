"""The child's side of a fork: becomes the guest and never returns.

Runs in a process that was forked from the spawner, so it must be quick, touch little memory, and leave by `os._exit`.
"""

from __future__ import annotations

import contextlib
import json
import os
from ctypes import addressof, c_char_p
from typing import Any, NoReturn

from wasmtime import ExitTrap, Trap, WasmtimeError

from wasmlet.runtime import capi
from wasmlet.runtime.directories import directories
from wasmlet.runtime.engine import CORE_ENTRY, Loaded, StartError, sentence
from wasmlet.runtime.framing import Message
from wasmlet.runtime.spec import START_FAILED_CODE, TRAP_CODE, ExitCause

# Characters of a message; what a module says of itself has no other limit.
_MAX_MESSAGE = 64 * 1024
_PR_SET_PDEATHSIG = 1
_SIGKILL = 9
_SIGCHLD = 17
_SIG_DFL = 0
_SIG_SETMASK = 2
_ENTRY = CORE_ENTRY.encode()


def become(spec: Message, loaded: Loaded, stdio: tuple[int, int, int], report: str, parent: int) -> NoReturn:
    """Turn this process into the guest of `spec`. What a code alone cannot tell goes into the file `report`."""
    try:
        _leave_the_spawner(stdio, loaded, parent)
        os._exit(_run(spec, loaded))
    except StartError as error:
        _fail(report, ExitCause.START_FAILED, str(error), START_FAILED_CODE)
    except ExitTrap as ended:
        os._exit(ended.code & 0xFF)
    except (Trap, WasmtimeError) as error:
        message = str(error)
        # What the wasmtime command prints, so that it stands in the log too.
        with contextlib.suppress(OSError):
            os.write(2, f"Error: {message}\n".encode())
        _fail(report, ExitCause.TRAPPED, message, TRAP_CODE)
    except Exception as error:
        _fail(report, ExitCause.START_FAILED, f"internal error: {error!r}", START_FAILED_CODE)


def exit_process(code: int) -> None:
    """`proc_exit` of WASI preview 1. The exit code is what Linux would make of it."""
    os._exit(code & 0xFF)


def _leave_the_spawner(stdio: tuple[int, int, int], loaded: Loaded, parent: int) -> None:
    # SIGPIPE stays ignored: a guest gets EPIPE, as under the wasmtime command.
    capi.signal(_SIGCHLD, _SIG_DFL)
    capi.sigprocmask(_SIG_SETMASK, capi.NO_SIGNALS, None)
    os.setsid()
    # Without the spawner nobody would reap this process or read its output.
    capi.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(START_FAILED_CODE)
    for target, fd in enumerate(stdio):
        os.dup2(fd, target)
    for first, last in loaded.not_needed:
        os.closerange(first, last)


def _run(spec: Message, loaded: Loaded) -> int:
    """Set the guest up and run it; returns its exit code.

    Raises:
        StartError: it cannot be set up.
        Trap, WasmtimeError: it did not end by itself.
    """
    context = capi.store_context(capi.store_new(loaded.engine, None, None))
    _demand_start(capi.context_set_wasi(context, _wasi(spec)))
    if loaded.run_export:
        return _run_component(context, loaded)
    _demand_start(capi.instance_pre_instantiate(loaded.program, context, capi.INSTANCE, capi.TRAP))
    # A start function that traps belongs to the program.
    _demand_no_trap()
    if not capi.instance_export_get(context, capi.INSTANCE, _ENTRY, len(_ENTRY), capi.EXPORT):
        raise StartError(f'the module exports no "{CORE_ENTRY}"')
    _demand(capi.func_call(context, capi.FUNC, None, 0, None, 0, capi.TRAP))
    _demand_no_trap()
    return 0


def _run_component(context: int, loaded: Loaded) -> int:
    error = capi.component_linker_instantiate(loaded.linker, context, loaded.program, capi.COMPONENT_INSTANCE)
    _demand_start(error)
    found = capi.component_instance_get_func(capi.COMPONENT_INSTANCE, context, loaded.run_export, capi.COMPONENT_FUNC)
    if not found:
        raise StartError('the component\'s "wasi:cli/run" has no function "run"')
    _demand(capi.component_func_call(capi.COMPONENT_FUNC, context, None, 0, capi.RESULT, 1))
    # Its type is `result`: an error without a value is exit code 1.
    return 0 if capi.result.of.result.is_ok else 1


def _demand(error: int | None) -> None:
    if error:
        raise capi.error_at(error)


def _demand_start(error: int | None) -> None:
    if error:
        raise StartError(f"cannot instantiate the module: {sentence(capi.error_at(error))}")


def _demand_no_trap() -> None:
    if capi.trap.value:
        raise capi.trap_that_came()


def _wasi(spec: Message) -> int:
    config: int = capi.wasi_config_new()
    argv, env, working_dir = spec["argv"], spec["env"], spec["working_dir"]
    if working_dir != "/" and not any(name == "PWD" for name, _ in env):
        env = [*env, ("PWD", working_dir)]
    names, values = [name for name, _ in env], [value for _, value in env]
    arrays = [_strings(texts) for texts in (argv, names, values)]
    arguments, variables, contents = map(addressof, arrays)
    if not capi.wasi_config_set_argv(config, len(argv), arguments):
        raise StartError("wasmtime does not take the arguments")
    if not capi.wasi_config_set_env(config, len(env), variables, contents):
        raise StartError("wasmtime does not take the environment")
    for inherit in capi.wasi_config_inherit:
        inherit(config)
    try:
        for directory in directories(spec["preopens"], working_dir):
            host, name = directory.host.encode(), directory.name.encode()
            if not capi.wasi_config_preopen_dir(config, host, name, not directory.read_only):
                raise StartError(f"cannot open the directory for {directory.name}: {_why(directory.host)}")
    except OSError as error:
        raise StartError(f"cannot open the working directory {working_dir}: {error.strerror}") from error
    return config


def _strings(texts: list[str]) -> Any:
    """An array of C strings."""
    return (c_char_p * len(texts))(*[text.encode() for text in texts])


def _why(directory: str) -> str:
    """Why a directory cannot be opened; wasmtime does not say."""
    try:
        os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
    except OSError as error:
        return f"{directory}: {error.strerror}"
    return directory


def _fail(report: str, cause: ExitCause, message: str, code: int) -> NoReturn:
    try:
        with open(report, "w", encoding="utf-8") as file:  # noqa: PTH123  imports less here
            json.dump({"cause": cause, "message": message[:_MAX_MESSAGE]}, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.write(2, f"{message}\n(and this could not be reported: {error})\n".encode())
    finally:
        os._exit(code)
