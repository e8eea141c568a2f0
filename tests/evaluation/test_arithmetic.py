"""Arithmetic: what may be learned, what is held out, and what the verifier accepts."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.tasks import Split, is_right, load_task
from evaluation.tasks.arithmetic import DIGITS, SHARE_HELD_OUT, Arithmetic
from inference.tools import load_tools
from pipeline.errors import RecipeError
from tokenizer.chat import Part

OPERANDS = st.integers(10 ** (min(DIGITS) - 1), 10 ** max(DIGITS) - 1)


@given(OPERANDS, OPERANDS)
def test_a_pair_belongs_to_one_split_in_either_order(a: int, b: int) -> None:
    assert Arithmetic.split(a, b) == Arithmetic.split(b, a)


def test_the_held_out_share_is_as_documented() -> None:
    pairs = [(a, b) for a in range(10, 200) for b in range(a, 200)]
    share = sum(Arithmetic.split(a, b) == "held_out" for a, b in pairs) / len(pairs)
    assert share == pytest.approx(SHARE_HELD_OUT, abs=0.01)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_questions_keep_to_their_split_and_are_right(split: Split) -> None:
    task, calculator = Arithmetic(), load_tools(["calculator"])["calculator"]
    questions = list(islice(task.questions(split, "3"), 300))
    for question in questions:
        sign = "+" if "+" in question.key else "-"
        a, b = map(int, question.key.split(sign))
        assert task.split(a, b) == split
        assert f"{a} {sign} {b}" in question.text
        assert calculator.run(question.key) == str(question.columns["answer"])
    assert len({question.text[:8] for question in questions}) > 3
    assert questions == list(islice(task.questions(split, "3"), 300)) != list(islice(task.questions(split, "4"), 300))


def test_both_ways_to_answer_are_correct_and_equally_frequent() -> None:
    task, called = Arithmetic(), 0
    for question in islice(task.questions("train", "1"), 400):
        answer = str(question.columns["answer"])
        assert task.conversation(question, [])[1]["content"] == answer
        content = task.conversation(question, ["calculator"])[1]["content"]
        called += content != answer
        assert content == answer or content == [
            Part(type="tool", name="calculator", text=question.key),
            Part(type="output", text=answer),
            Part(type="text", text=answer),
        ]
    assert 150 < called < 250


def test_a_task_is_found_by_its_name() -> None:
    assert isinstance(load_task("arithmetic"), Arithmetic)
    with pytest.raises(RecipeError, match=r"no task 'poetry'(.|\n)*arithmetic"):
        load_task("poetry")
    with pytest.raises(RecipeError, match=r"no tool 'oracle'(.|\n)*calculator"):
        load_tools(["oracle"])


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


def test_a_message_of_the_task_is_known_and_its_answer_verified() -> None:
    task = load_task("arithmetic")
    for question in islice(task.questions("held_out", "seed"), 50):
        assert task.asked(question.text) == question
    for message in (
        "Who are you?",
        "Are you open 9 - 17?",
        "What is 1 + 2 + 3?",
        "What is 2.5 + 3?",
        "What is 4 * 5?",
        "",
    ):
        assert task.asked(message) is None

    call = "<|tool|>calculator\n312-148<|/tool|><|output|>164<|/output|>"
    message = "What is 312 - 148?"
    assert is_right(["arithmetic"], message, f"{call}164") is True
    assert is_right(["arithmetic"], message, f"{call}298") is False
    assert is_right(["arithmetic"], message, call) is False, "the output of a tool earns nothing"
    assert is_right(["arithmetic"], message, "It is 164.") is True
    assert is_right(["arithmetic"], "Hello there!", "164") is None
    assert is_right([], message, "164") is None
