"""The calculator against Python's own arithmetic, and against whatever a model may write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.tools.calculator import LONGEST, TOOL

calculator = TOOL.run

NUMBERS = st.integers(0, 999).map(str)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", " + ", " - "]), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-({text})"),
    ),
    max_leaves=6,
).filter(lambda text: len(text) <= LONGEST)


@given(EXPRESSIONS)
def test_it_computes_as_python_does(expression: str) -> None:
    digits = "".join(c if c.isdigit() else " " for c in expression).split()
    for number in {d for d in digits if d != str(int(d))}:
        expression = expression.replace(number, str(int(number)))
    assert calculator(expression) == str(eval(expression))


@given(st.text(max_size=80))
def test_any_text_gets_an_answer_and_is_not_executed(text: str) -> None:
    assert calculator(text) == "error" or calculator(text).lstrip("-").isdigit()


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1+",
        "+1",
        "2**3",
        "1/0",
        "(1",
        "1)",
        "1 2",
        "()",
        "1.5",
        "٣+٤",
        "__import__('os')",
        "9" * 19,
        "1+" * 40,
    ],
)
def test_what_is_no_arithmetic_is_an_error(text: str) -> None:
    assert calculator(text) == "error"


def test_signs_and_precedence() -> None:
    assert calculator("2+3*4") == "14"
    assert calculator("10-3-2") == "5"
    assert calculator("-(2-5)*-2") == "-6"
    assert calculator("(" * 31 + "7" + ")" * 31) == "7"
