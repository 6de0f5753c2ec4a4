"""The yardstick: the native `wasmtime` command."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from hack.benchmarks.figures import BenchError
from hack.benchmarks.processes import settled


@dataclass(frozen=True, slots=True, kw_only=True)
class Native:
    """A `wasmtime` command that runs precompiled files."""

    command: Path
    version: str

    @classmethod
    def find(cls, folder: Path) -> Native:
        """The one of the development environment, or that of the PATH if it is newer.

        `folder` gets a copy of the former: its package ships the program without the right to execute it.

        Raises:
            BenchError: there is none.
        """
        found = [_described(path) for path in (_packaged(folder), _installed()) if path is not None]
        if not found:
            raise BenchError("there is no wasmtime command to compare with: run hack/setup, or put one on the PATH")
        return max(found, key=lambda native: [int(part) for part in native.version.split(".")])

    def compile(self, module: Path, artifact: Path) -> Path:
        """Compile ahead of time, as a node does before it starts a container."""
        subprocess.run([self.command, "compile", module, "-o", artifact], check=True)
        return artifact

    def first_byte(self, artifact: Path) -> float:
        """Seconds from the start of the process to the first byte on its pipe."""
        read, write = os.pipe2(os.O_CLOEXEC)
        with os.fdopen(read, "rb", buffering=0) as output:
            begin = time.perf_counter()
            pid = self._spawn(artifact, write)
            os.close(write)
            first = output.read(1)
            took = time.perf_counter() - begin
            output.readall()
        self._reap(pid)
        if not first:
            raise BenchError(f"{artifact.name} printed nothing under the native wasmtime command")
        return took

    def rate(self, artifact: Path, count: int, at_once: int) -> float:
        """Processes run to completion in a second, so many at once."""

        def run(_: int) -> None:
            self._reap(self._spawn(artifact, null))

        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            with ThreadPoolExecutor(at_once) as pool:
                begin = time.perf_counter()
                list(pool.map(run, range(count)))
                return count / (time.perf_counter() - begin)
        finally:
            os.close(null)

    @contextmanager
    def running(self, artifact: Path, count: int) -> Iterator[Sequence[psutil.Process]]:
        """So many processes of a program that sleeps, once they have come to rest."""
        command = [str(self.command), "run", "--allow-precompiled", str(artifact)]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            processes.extend(subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(count))
            seen = [psutil.Process(process.pid) for process in processes]
            settled(seen)
            yield seen
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def _spawn(self, artifact: Path, stdout: int) -> int:
        # The leanest way to start a process, so that the yardstick carries no weight of Python's.
        argv = [str(self.command), "run", "--allow-precompiled", str(artifact)]
        return os.posix_spawn(argv[0], argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, stdout, 1)])

    @staticmethod
    def _reap(pid: int) -> None:
        _, status = os.waitpid(pid, 0)
        if status != 0:
            raise BenchError(f"the native wasmtime command failed: exit code {os.waitstatus_to_exitcode(status)}")


def _packaged(folder: Path) -> Path | None:
    package = importlib.util.find_spec("wasmtime_cli")
    if package is None or package.origin is None:
        return None
    copy = folder / "wasmtime"
    shutil.copyfile(Path(package.origin).with_name("wasmtime"), copy)
    copy.chmod(0o755)
    return copy


def _installed() -> Path | None:
    found = shutil.which("wasmtime")
    # The environment's own is a Python script around the packaged one.
    return None if found is None or Path(found).is_relative_to(sys.prefix) else Path(found)


def _described(command: Path) -> Native:
    answer = subprocess.run([command, "--version"], check=True, capture_output=True, text=True).stdout
    version = re.search(r"\d+\.\d+\.\d+", answer)
    if version is None:
        raise BenchError(f"{command} --version answers {answer.strip()!r}, which has no version in it")
    return Native(command=command, version=version[0])
