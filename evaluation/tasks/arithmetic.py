"""Tasks with a verifier: the questions, who may learn from them, and what counts as right."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizer.chat import Message, Part

Split = Literal["train", "held_out"]

HELD_OUT = 0.2  # share of the operand pairs that no training stage sees
DIGITS = (2, 3)  # of an operand, alike often: beyond what a small model adds reliably in its head
_WORDINGS = (
    "What is {a} {sign} {b}?",
    "Calculate {a} {sign} {b}.",
    "How much is {a} {sign} {b}?",
    "{a} {sign} {b} = ?",
    "Please compute {a} {sign} {b}.",
    "Can you tell me {a} {sign} {b}?",
)
_NUMBER = re.compile(r"-?[0-9]+")


@dataclass(frozen=True)
class Question:
    """One question with its expression and answer."""

    text: str
    expression: str
    answer: int


class Arithmetic:
    """Sums and differences of two whole numbers, asked in words. An operand pair belongs to one split for ever."""

    @staticmethod
    def split(a: int, b: int) -> Split:
        """The split of an operand pair, by hash; 47 and 85 are the same pair as 85 and 47."""
        draw = hashlib.sha256(f"{min(a, b)},{max(a, b)}".encode()).digest()
        return "held_out" if int.from_bytes(draw[:4], "big") < HELD_OUT * 2**32 else "train"

    def question(self, rng: random.Random, split: Split) -> Question:
        """A question of this split."""
        while True:
            a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for digits in rng.choices(DIGITS, k=2))
            if self.split(a, b) == split:
                break
        sign = rng.choice("+-")
        text = rng.choice(_WORDINGS).format(a=a, sign=sign, b=b)
        return Question(text, f"{a}{sign}{b}", a + b if sign == "+" else a - b)

    def conversation(self, question: Question, tool: bool) -> list[Message]:
        """The question answered directly or by a call of the calculator; correct either way."""
        answer: str | list[Part] = f"{question.answer}"
        if tool:
            answer = [
                Part(type="tool", text=question.expression),
                Part(type="output", text=f"{question.answer}"),
                Part(type="text", text=f"{question.answer}"),
            ]
        return [Message(role="user", content=question.text), Message(role="assistant", content=answer)]

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """1 where the last number the assistant wrote is the answer, else 0. `columns["answer"]`: the answers.

        A completion is what the model itself wrote after its last tool call, as text or as TRL's list of messages.
        """
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
        return [
            # Compared as text: what a model writes may be too long for `int`.
            float(_NUMBER.findall(text)[-1:] == [str(answer)])
            for text, answer in zip(texts, columns["answer"], strict=True)
        ]
