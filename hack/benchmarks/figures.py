"""A measured figure, and how figures are shown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table


class BenchError(Exception):
    """A figure cannot be measured; the message is for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured value; the yardstick is what the native `wasmtime` command has for the same."""

    bench: str
    figure: str
    value: float
    unit: str
    yardstick: float | None = None
    at_most: float | None = None
    at_least: float | None = None

    def to_json(self) -> str:
        yardstick = None if self.yardstick is None else _rounded(self.yardstick)
        return json.dumps(
            {
                "bench": self.bench,
                "figure": self.figure,
                "value": _rounded(self.value),
                "unit": self.unit,
                "yardstick": yardstick,
            }
        )

    def target(self) -> str:
        """The limit, and whether the value keeps it."""
        if self.at_most is not None:
            return f"≤ {_number(self.at_most)}{'' if self.value <= self.at_most else ', missed'}"
        if self.at_least is not None:
            return f"≥ {_number(self.at_least)}{'' if self.value >= self.at_least else ', missed'}"
        return ""


def print_table(figures: Sequence[Figure], out: IO[str]) -> None:
    """Print figures as a Markdown table, which is also fit to read."""
    table = Table(box=box.MARKDOWN)
    for heading in ("bench", "figure"):
        table.add_column(heading)
    for heading in ("value", "unit", "wasmtime", "target"):
        table.add_column(heading, justify="left" if heading == "unit" else "right")
    for figure in figures:
        yardstick = "" if figure.yardstick is None else _number(figure.yardstick)
        table.add_row(figure.bench, figure.figure, _number(figure.value), figure.unit, yardstick, figure.target())
    console = Console(width=200, highlight=False, color_system=None)
    with console.capture() as text:
        console.print(table)
    # Without the blank edges above and below.
    print(text.get().strip(), file=out, flush=True)


def p50(samples: Sequence[float]) -> float:
    return statistics.median(samples)


def p99(samples: Sequence[float]) -> float:
    return statistics.quantiles(samples, n=100, method="inclusive")[-1]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
