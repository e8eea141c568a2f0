"""Numbers as people read them."""

from __future__ import annotations

import pytest

from web.words import rate, short


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1234, "1.23 k"), (999_400, "999 k"), (999_700, "1 M"), (3.9e6, "3.9 M"), (2e12, "2 T")],
)
def test_a_large_number_has_three_digits_and_a_unit(count: float, text: str) -> None:
    assert short(count) == text.replace(" ", "\N{NO-BREAK SPACE}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("arithmetic.sampled_accuracy", "93%"),
        ("arithmetic.accuracy_with_tool", "93%"),
        ("hellaswag_accuracy_normalised", "93%"),
        ("arithmetic.tool_rate", "93%"),
        ("arithmetic.answer_length", "0.934"),
        ("lambada_perplexity", "0.934"),
    ],
)
def test_shares_are_percentages(name: str, text: str) -> None:
    assert rate(name, 0.934) == text
    assert rate(name, None) == "–"
