"""`hack/bench` works; what it measures is no test's business."""

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

BENCH = Path(__file__).parents[2] / "hack" / "bench"


@pytest.mark.timeout(600)  # The compilers' caches may be cold.
def test_a_quick_bench_prints_a_json_object_a_figure() -> None:
    result = subprocess.run([BENCH, "--quick", "--json", "start"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    figures = [json.loads(line) for line in result.stdout.splitlines()]
    assert figures
    for figure in figures:
        assert set(figure) == {"bench", "figure", "value", "unit", "yardstick"}
        assert figure["bench"] == "start"
        assert figure["unit"] == "ms"
        assert figure["value"] > 0
        assert figure["yardstick"] > 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_bench_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    bench = subprocess.Popen(
        [BENCH, "--quick", "churn"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert bench.stderr is not None
    for line in bench.stderr:
        if line.startswith("churn:"):
            bench.send_signal(number)
    assert bench.wait() == 130
    assert list(tmp_path.iterdir()) == []
    assert processes_with(str(tmp_path)) == []


def processes_with(word: str) -> list[list[str]]:
    """Command lines in which a word occurs."""
    found = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [command for command in found if any(word in part for part in command)]


def test_an_unknown_bench_is_refused_by_name() -> None:
    result = subprocess.run([BENCH, "speed"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "there is no bench 'speed'" in result.stderr
