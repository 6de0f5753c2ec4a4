"""`hack/bench` works; what it measures is no test's business."""

import json
import subprocess
from pathlib import Path

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


def test_an_unknown_bench_is_refused_by_name() -> None:
    result = subprocess.run([BENCH, "speed"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "there is no bench 'speed'" in result.stderr
