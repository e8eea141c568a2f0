"""Tasks: questions, what may be learned from them, and what counts as right. One small class per file.

evaluation asks them, sft learns from their conversations, rl is rewarded by their verifier; a recipe names them, with a
number of questions or a weight. Data and reward are TRL's contract, so that a verifier moves to and from TRL as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol

from pipeline import available
from pipeline.errors import RecipeError
from tokenizer.chat import Message

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Question:
    """One question. `key` names it, whatever its wording; `columns` are what the verifier needs: the answer."""

    key: str
    text: str
    columns: dict[str, Any]

    def messages(self) -> list[Message]:
        """The conversation up to the answer."""
        return [Message(role="user", content=self.text)]


class Task(Protocol):
    """A file `evaluation/tasks/<name>.py` holds one as `TASK`."""

    name: str
    label: str  # as people read it, in the plural: "sums and differences"

    def questions(self, split: Split, seed: str) -> Iterator[Question]:
        """Questions of a split without end; the same seed gives the same ones. A key belongs to one split for ever."""

    def conversation(self, question: Question, tools: Collection[str]) -> list[Message]:
        """The question with a right answer, for fine-tuning: by a call where the model has a tool that helps."""

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        """A score of 0 to 1 for each completion. As TRL calls it: prompts and completions are lists of messages, or
        text; `columns` are those of the questions, one value per completion.
        """


def named(name: str) -> Task:
    """The task of this name. Raises `RecipeError` where there is none."""
    if name not in (known := available.tasks()):
        raise RecipeError(f"there is no task {name!r}", f"name one of {', '.join(known)}")
    task: Task = import_module(f"evaluation.tasks.{name}").TASK
    return task


def rewards(task: Task, questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
    """The task's reward of each answer to the question beside it."""
    columns: dict[str, list[Any]] = {}
    for question in questions:
        for column, value in question.columns.items():
            columns.setdefault(column, []).append(value)
    prompts = [question.messages() for question in questions]
    completions = [[Message(role="assistant", content=answer)] for answer in answers]
    return task.reward(prompts, completions, **columns)


def text_of(completion: Any) -> str:
    """The text of a completion, which TRL gives as text or as a list of messages."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])
