import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmlet.pods.expansion import expand

VARIABLES = {"A": "a", "EMPTY": "", "NESTED": "$(A)", "with.dot": "dot"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("$(A)", "a"),
        ("$(A)$(A)-$(EMPTY)", "aa-"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$a"),
        ("$$", "$"),
        ("$", "$"),
        ("$(", "$("),
        ("$A", "$A"),
        ("$(NESTED)", "$(A)"),
        ("$(with.dot)", "dot"),
        ("$()", "$()"),
    ],
)
def test_expands_like_kubernetes(text: str, result: str) -> None:
    assert expand(text, VARIABLES) == result


@given(st.text().filter(lambda text: "$" not in text))
def test_leaves_text_without_dollars_alone(text: str) -> None:
    assert expand(text, VARIABLES) == text


@given(st.text())
def test_doubling_every_dollar_escapes_any_text(text: str) -> None:
    assert expand(text.replace("$", "$$"), VARIABLES) == text
