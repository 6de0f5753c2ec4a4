from contextlib import suppress
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmlet.pods.quantity import divide, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", "0"),
        ("100m", "0.1"),
        ("1.5", "1.5"),
        (".5", "0.5"),
        ("128Mi", str(128 * 1024**2)),
        ("1k", "1000"),
        ("1e3", "1000"),
        ("12E+2", "1200"),
        ("1E", "1e18"),
        ("1Ei", str(1024**6)),
        ("+2", "2"),
        ("-1", "-1"),
        ("5n", "5e-9"),
    ],
)
def test_reads_every_form(text: str, value: str) -> None:
    assert parse(text) == Decimal(value)


@pytest.mark.parametrize(
    "text", ["", "abc", "1Mib", "1 Mi", "1mi", "--1", "1.2.3", "1e", "1e1000", "0x10", "1Ki2", "१"]
)
def test_refuses_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse(text)


@given(st.text())
def test_any_text_is_a_number_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert isinstance(parse(text), Decimal)


@given(st.integers(min_value=0, max_value=10**18), st.sampled_from(["1", "1m", "1k", "1Ki", "1Mi"]))
def test_division_rounds_up(value: int, divisor: str) -> None:
    unit = parse(divisor)
    result = divide(Decimal(value), unit)
    assert (result - 1) * unit < value <= result * unit
