"""Numbers as people read them."""

from __future__ import annotations

import pytest

from web.words import percent, rate, short


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1234, "1.23 k"), (999_400, "999 k"), (999_700, "1 M"), (3.9e6, "3.9 M"), (2e12, "2 T")],
)
def test_a_large_number_has_three_digits_and_a_unit(count: float, text: str) -> None:
    assert short(count) == text.replace(" ", "\N{NO-BREAK SPACE}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("arithmetic.sampled_accuracy", "93.4%"),
        ("arithmetic.accuracy_with_tool", "93.4%"),
        ("hellaswag_accuracy_normalised", "93.4%"),
        ("arithmetic.tool_rate", "93.4%"),
        ("arithmetic.answer_length", "0.9"),
        ("lambada_perplexity", "0.934"),
    ],
)
def test_shares_are_percentages(name: str, text: str) -> None:
    assert rate(name, 0.934) == text
    assert rate(name, None) == "–"


def test_percentages_have_one_form() -> None:
    assert [percent(share) for share in (0, 0.0004, 0.048, 0.5, 0.955, 1)] == [
        *("0.0%", "<0.1%", "4.8%", "50.0%", "95.5%", "100.0%")
    ]
