"""The programs that are run: real C and Go, the same file for the provider and for the yardstick."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hack.benchmarks.figures import BenchError
from hack.benchmarks.native import Native

_SOURCES = Path(__file__).parent / "guests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A program as WebAssembly, and as the native command's precompiled file."""

    name: str
    module: Path
    native: Path

    @property
    def image(self) -> str:
        return f"bench/{self.module.stem}:1"

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.module.read_bytes()).hexdigest()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guests:
    """For each language a program that prints a line and ends, and one that sleeps."""

    c_hello: Guest
    c_sleep: Guest
    go_hello: Guest
    go_sleep: Guest

    @property
    def hellos(self) -> tuple[Guest, ...]:
        return (self.c_hello, self.go_hello)

    @property
    def all(self) -> tuple[Guest, ...]:
        return (self.c_hello, self.c_sleep, self.go_hello, self.go_sleep)


def build(folder: Path, native: Native) -> Guests:
    """Compile the sources beside this file.

    Raises:
        BenchError: a compiler is missing, or fails.
    """

    def guest(name: str, module: Path) -> Guest:
        return Guest(name=name, module=module, native=native.compile(module, module.with_suffix(".cwasm")))

    return Guests(
        c_hello=guest("C hello", _c(folder, "hello")),
        c_sleep=guest("C sleep", _c(folder, "sleep")),
        go_hello=guest("Go hello", _go(folder, "hello")),
        go_sleep=guest("Go sleep", _go(folder, "sleep")),
    )


def _c(folder: Path, name: str) -> Path:
    module = folder / f"{name}-c.wasm"
    target = ("-target", "wasm32-wasi", "-O2", "-s")
    _run([sys.executable, "-m", "ziglang", "cc", *target, "-o", str(module), str(_SOURCES / f"{name}.c")])
    return module


def _go(folder: Path, name: str) -> Path:
    if shutil.which("go") is None:
        raise BenchError("Go is not installed: it builds the Go guests")
    module = folder / f"{name}-go.wasm"
    environment = {**os.environ, "GOOS": "wasip1", "GOARCH": "wasm", "GOFLAGS": ""}
    _run(["go", "build", "-o", str(module), str(_SOURCES / f"{name}.go")], environment)
    return module


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BenchError(f"{' '.join(command)} failed:\n{result.stderr.strip()}")
