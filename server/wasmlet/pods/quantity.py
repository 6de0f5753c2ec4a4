"""Kubernetes quantities (`100m`, `128Mi`, `1e3`) as exact numbers."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

_FORM = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))([eE][+-]?[0-9]{1,3}|[KMGTPE]i|[numkMGTPE]?)")
_BINARY = {f"{letter}i": Decimal(1024**power) for power, letter in enumerate("KMGTPE", start=1)}
_DECIMAL = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal("1e3"),
    "M": Decimal("1e6"),
    "G": Decimal("1e9"),
    "T": Decimal("1e12"),
    "P": Decimal("1e15"),
    "E": Decimal("1e18"),
}
_FACTORS = _DECIMAL | _BINARY


def parse(text: str) -> Decimal:
    """The value of a quantity, in its base unit (cores, bytes, pieces).

    Raises:
        ValueError: it is not a quantity; the message quotes it.

    https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f'"{text[:64]}" is not a quantity: expected a number with a suffix such as m, k, Ki, Mi or Gi')
    number, suffix = match.groups()
    if suffix[:1] in ("e", "E") and len(suffix) > 1 and suffix not in _BINARY:
        return Decimal(number).scaleb(int(suffix[1:]))
    return Decimal(number) * _FACTORS[suffix]


def divide(value: Decimal, divisor: Decimal) -> int:
    """How many times `divisor` a value is, rounded up, as resourceFieldRef wants it."""
    return int((value / divisor).to_integral_value(rounding=ROUND_CEILING))
