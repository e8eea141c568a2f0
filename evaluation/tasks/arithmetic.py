"""The task `arithmetic`: sums and differences of two whole numbers, asked in words."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from evaluation.tasks import Question, Split, text_of
from tokenizer.chat import Message, Part

SHARE_HELD_OUT = 0.2  # share of the operand pairs that no training stage sees
DIGITS = (2, 3)  # digits of an operand, each equally often: too many for a small model to add reliably without a tool
_WORDINGS = (
    "What is {a} {sign} {b}?",
    "Calculate {a} {sign} {b}.",
    "How much is {a} {sign} {b}?",
    "{a} {sign} {b} = ?",
    "Please compute {a} {sign} {b}.",
    "Can you tell me {a} {sign} {b}?",
)
_ASKED = re.compile(
    "|".join(
        re.escape(wording)
        .replace(r"\{a\}", r"(\d{1,9})")
        .replace(r"\{sign\}", "([+-])")
        .replace(r"\{b\}", r"(\d{1,9})")
        for wording in _WORDINGS
    )
)
_NUMBER = re.compile(r"-?[0-9]+")


def _question(a: int, sign: str, b: int, text: str) -> Question:
    return Question(f"{a}{sign}{b}", text, {"answer": a + b if sign == "+" else a - b})


class Arithmetic:
    """Sums and differences. An operand pair belongs to one split for ever."""

    name = "arithmetic"
    label = "arithmetic questions"

    @staticmethod
    def split(a: int, b: int) -> Split:
        """The split of an operand pair, by hash; 47 and 85 are the same pair as 85 and 47."""
        draw = hashlib.sha256(f"{min(a, b)},{max(a, b)}".encode()).digest()
        return "held_out" if int.from_bytes(draw[:4], "big") < SHARE_HELD_OUT * 2**32 else "train"

    def questions(self, split: Split, seed: str) -> Iterator[Question]:
        """See `Task`. `key` is the expression, which the calculator can evaluate."""
        rng = random.Random(seed)
        while True:
            a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for digits in rng.choices(DIGITS, k=2))
            if self.split(a, b) != split:
                continue
            sign = rng.choice("+-")
            text = rng.choice(_WORDINGS).format(a=a, sign=sign, b=b)
            yield _question(a, sign, b, text)

    def asked(self, text: str) -> Question | None:
        """See `Task`. In one of its own wordings: "open 9 - 17" is no difference."""
        match = _ASKED.fullmatch(text.strip())
        if match is None:
            return None
        a, sign, b = filter(None, match.groups())
        return _question(int(a), sign, int(b), text)

    def conversation(self, question: Question, tools: Collection[str]) -> list[Message]:
        """See `Task`. With a calculator, half of the questions call it: which is better is left to rl to find out."""
        # By hash of the wording, not by a draw: a question is answered the same way in every run.
        answer: str | list[Part] = str(question.columns["answer"])
        if "calculator" in tools and hashlib.sha256(question.text.encode()).digest()[0] % 2:
            answer = [
                Part(type="tool", name="calculator", text=question.key),
                Part(type="output", text=str(answer)),
                Part(type="text", text=str(answer)),
            ]
        return [*question.messages(), Message(role="assistant", content=answer)]

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        """1 where the last number the assistant wrote is the answer, else 0. `columns["answer"]`: the answers.

        A completion is what the model itself wrote after its last tool call, so the output of a tool earns nothing.
        """
        return [
            # Compared as text: `int` refuses more than 4,300 digits, and a model may write them.
            float(_NUMBER.findall(text_of(completion))[-1:] == [str(answer)])
            for completion, answer in zip(completions, columns["answer"], strict=True)
        ]


TASK = Arithmetic()
