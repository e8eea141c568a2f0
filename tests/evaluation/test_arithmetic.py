"""Arithmetic: what may be learned, what is held out, and what the verifier accepts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.tasks.arithmetic import DIGITS, HELD_OUT, Arithmetic, Question, Split
from inference.tools.calculator import calculator
from tokenizer.chat import Part

OPERANDS = st.integers(10 ** (min(DIGITS) - 1), 10 ** max(DIGITS) - 1)


@given(OPERANDS, OPERANDS)
def test_a_pair_belongs_to_one_split_in_either_order(a: int, b: int) -> None:
    assert Arithmetic.split(a, b) == Arithmetic.split(b, a)


def test_the_share_held_out_is_the_one_that_is_said() -> None:
    pairs = [(a, b) for a in range(10, 200) for b in range(a, 200)]
    share = sum(Arithmetic.split(a, b) == "held_out" for a, b in pairs) / len(pairs)
    assert share == pytest.approx(HELD_OUT, abs=0.01)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_questions_keep_to_their_split_and_are_right(split: Split) -> None:
    task, rng = Arithmetic(), random.Random(3)
    questions = [task.question(rng, split) for _ in range(300)]
    for question in questions:
        sign = "+" if "+" in question.expression else "-"
        a, b = map(int, question.expression.split(sign))
        assert task.split(a, b) == split
        assert f"{a} {sign} {b}" in question.text
        assert calculator(question.expression) == str(question.answer)
    assert len({question.text.split(str(question.answer))[0][:8] for question in questions}) > 3
    assert questions == [task.question(rng, split) for rng in [random.Random(3)] for _ in range(300)]


def test_both_ways_to_answer_are_correct() -> None:
    task, question = Arithmetic(), Question("What is 47 - 85?", "47-85", -38)
    direct, called = (task.conversation(question, tool)[1]["content"] for tool in (False, True))
    assert direct == "-38"
    assert called == [
        Part(type="tool", text="47-85"),
        Part(type="output", text="-38"),
        Part(type="text", text="-38"),
    ]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("132", 1.0), ("47 + 85 = 132", 1.0), ("It is 132.", 1.0), ("132 or 133", 0.0), ("", 0.0), ("1320", 0.0),
        ("-132", 0.0), ("one hundred", 0.0), ("9" * 6000, 0.0),
    ],
)  # fmt: skip
def test_the_last_number_decides(text: str, score: float) -> None:
    assert Arithmetic().reward([""], [text], answer=[132]) == [score]


def test_rewards_come_in_order_and_from_messages_too() -> None:
    task = Arithmetic()
    messages = [{"role": "assistant", "content": "-5"}]
    assert task.reward(["", "", ""], ["4", messages, "-5"], answer=[4, -5, 5]) == [1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="zip"):
        task.reward([""], ["4"], answer=[4, 5])
