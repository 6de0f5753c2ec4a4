"""The child's side of a fork: becomes the guest and never returns.

Runs in a process that was forked from the spawner, so it must be quick, touch little memory, and leave by `os._exit`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from wasmtime import ExitTrap, Func, InstancePre, Store, Trap, WasiConfig, WasmtimeError, component

from wasmlet.runtime.directories import Directory, directories
from wasmlet.runtime.engine import CORE_ENTRY, Loaded, sentence
from wasmlet.runtime.framing import Message
from wasmlet.runtime.spec import START_FAILED_CODE, TRAP_CODE, ExitCause

_PR_SET_PDEATHSIG = 1
# Characters of a message; what a module says of itself has no other limit.
_MAX_MESSAGE = 64 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


class StartError(Exception):
    """The guest cannot start; the message is for the user."""


def become(spec: Message, loaded: Loaded, stdio: tuple[int, int, int], report: Path, parent: int) -> NoReturn:
    """Turn this process into the guest of `spec`. What a code alone cannot tell goes into the file `report`."""
    try:
        _leave_the_spawner(stdio, loaded.fds, parent)
        try:
            run = _instantiate(spec, loaded)
        except StartError as error:
            _fail(report, ExitCause.START_FAILED, str(error), START_FAILED_CODE)
        code = _run(run, report)
    except Exception as error:
        _fail(report, ExitCause.START_FAILED, f"internal error: {error!r}", START_FAILED_CODE)
    os._exit(code)


def exit_process(code: int) -> None:
    """`proc_exit` of WASI preview 1. The exit code is what Linux would make of it."""
    os._exit(code & 0xFF)


def _leave_the_spawner(stdio: tuple[int, int, int], keep: tuple[int, ...], parent: int) -> None:
    signal.set_wakeup_fd(-1)
    # SIGPIPE stays ignored: a guest gets EPIPE, as under the wasmtime command.
    for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    # Without the spawner nobody would reap this process or read its output.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(START_FAILED_CODE)
    for target, fd in enumerate(stdio):
        os.dup2(fd, target)
    close_others(keep)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def close_others(keep: tuple[int, ...]) -> None:
    """Close every file descriptor but stdio and those to keep."""
    first = 3
    for fd in sorted(keep):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _instantiate(spec: Message, loaded: Loaded) -> Callable[[], bool]:
    """Set the guest up; returns the call that runs it and tells whether it ended well."""
    store = Store(loaded.engine)
    store.set_wasi(_wasi(spec))
    try:
        if isinstance(loaded.program, InstancePre):
            instance = loaded.program.instantiate(store)
            entry = instance.exports(store).get(CORE_ENTRY)
            if not isinstance(entry, Func):
                raise StartError(f'the module exports no function "{CORE_ENTRY}": it is a library, not a program')
            kind = entry.type(store)
            if kind.params or kind.results:
                raise StartError(f'the module\'s "{CORE_ENTRY}" takes or returns values: it is not that of a program')
            return lambda: entry(store) is None
        return _component(store, loaded)
    except Trap as trap:
        # A start function that traps belongs to the program.
        message = str(trap)

        def trapped() -> bool:
            raise WasmtimeError(message)

        return trapped
    except WasmtimeError as error:
        raise StartError(f"cannot instantiate the module: {sentence(error)}") from error


def _component(store: Store, loaded: Loaded) -> Callable[[], bool]:
    assert isinstance(loaded.program, component.Component)  # noqa: S101  for the type checker
    assert loaded.linker is not None  # noqa: S101
    if loaded.run_export is None:
        raise StartError('the component does not export "wasi:cli/run": it is a library or a service, not a command')
    instance = loaded.linker.instantiate(store, loaded.program)
    run = instance.get_func(store, loaded.run_export)
    if run is None:
        raise StartError('the component\'s "wasi:cli/run" has no function "run"')
    # The result type is `result`: an error comes as a variant, success as None.
    return lambda: not _is_error(run(store))


def _is_error(result: object) -> bool:
    return getattr(result, "tag", "ok") == "err"


def _wasi(spec: Message) -> WasiConfig:
    wasi = WasiConfig()
    wasi.argv = spec["argv"]
    env, working_dir = spec["env"], spec["working_dir"]
    if working_dir != "/" and not _has(env, "PWD"):
        env = [*env, ("PWD", working_dir)]
    wasi.env = env
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    try:
        for directory in directories(spec["preopens"], working_dir):
            _preopen(wasi, directory)
    except OSError as error:
        raise StartError(f"cannot open the working directory {working_dir}: {error.strerror}") from error
    return wasi


def _preopen(wasi: WasiConfig, directory: Directory) -> None:
    try:
        wasi.preopen_dir(directory.host, directory.name, not directory.read_only)
    except WasmtimeError as error:
        raise StartError(f"cannot open the directory for {directory.name}: {_why(directory.host)}") from error


def _why(directory: str) -> str:
    """Why a directory cannot be opened; wasmtime does not say."""
    try:
        os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
    except OSError as error:
        return f"{directory}: {error.strerror}"
    return directory


def _has(env: list[tuple[str, str]], name: str) -> bool:
    return any(key == name for key, _ in env)


def _run(run: Callable[[], bool], report: Path) -> int:
    try:
        return 0 if run() else 1
    except ExitTrap as ended:
        return ended.code & 0xFF
    except (Trap, WasmtimeError) as trap:
        message = str(trap)
        # What the wasmtime command prints, so that it stands in the log too.
        with contextlib.suppress(OSError):
            os.write(2, f"Error: {message}\n".encode())
        _fail(report, ExitCause.TRAPPED, message, TRAP_CODE)


def _fail(report: Path, cause: ExitCause, message: str, code: int) -> NoReturn:
    try:
        report.write_text(json.dumps({"cause": cause, "message": message[:_MAX_MESSAGE]}))
    except OSError as error:
        os.write(2, f"{message}\n(and this could not be reported: {error})\n".encode())
    finally:
        os._exit(code)
