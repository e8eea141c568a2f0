"""Tasks: questions, conversations to learn from, and a verifier of answers. One small class per file.

evaluation asks the questions, sft learns from the conversations, rl is rewarded by the verifier. A recipe names tasks
with a number of questions or a weight. Data and reward follow TRL's contract, so a verifier can be used there as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol

from pipeline import available
from pipeline.errors import RecipeError
from tokenizer.chat import OUTPUT_END, Message

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Question:
    """One question. `key` identifies it whatever its wording; `columns` hold what the verifier needs: the answer."""

    key: str
    text: str
    columns: dict[str, Any]

    def messages(self) -> list[Message]:
        """The conversation that the model is to answer."""
        return [Message(role="user", content=self.text)]


class Task(Protocol):
    """What the stages need of a task; a file `evaluation/tasks/<name>.py` holds one as `TASK`."""

    name: str
    label: str  # as people read it, in the plural: "sums and differences"

    def questions(self, split: Split, seed: str) -> Iterator[Question]:
        """Endless questions of a split; the same seed yields the same ones. A key belongs to one split for ever."""

    def asked(self, text: str) -> Question | None:
        """The question that a person's message asks, None where it is not one of this task's."""

    def conversation(self, question: Question, tools: Collection[str]) -> list[Message]:
        """The question with a right answer, for fine-tuning; `tools` are those that the answer may call."""

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        """The verifier: a score from 0 to 1 per completion.

        The signature is that of TRL's reward functions: prompts and completions are texts or lists of messages,
        `columns` are those of the questions with one value per completion.
        """


def load_task(name: str) -> Task:
    """The task of this name. Raises `RecipeError` for a name without a file."""
    if name not in (known := available.tasks()):
        raise RecipeError(f"there is no task {name!r}", f"name one of {', '.join(known)}")
    task: Task = import_module(f"evaluation.tasks.{name}").TASK
    return task


def rewards(task: Task, questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
    """The task's reward of each answer to its question: `questions` and `answers` correspond."""
    # From one object per question to one list per column, as TRL passes a batch of a data set.
    columns: dict[str, list[Any]] = {}
    for question in questions:
        for column, value in question.columns.items():
            columns.setdefault(column, []).append(value)
    prompts = [question.messages() for question in questions]
    completions = [[Message(role="assistant", content=answer)] for answer in answers]
    return task.reward(prompts, completions, **columns)


def is_right(names: Iterable[str], message: str, answer: str) -> bool | None:
    """Whether an answer to a message is right by the verifier of these tasks; None where none asks such a question.

    `answer`: the assistant's turn as sampled, of which what follows the last output of a tool counts.
    """
    for task in map(load_task, names):
        if (question := task.asked(message)) is not None:
            return rewards(task, [question], [answer.rpartition(OUTPUT_END)[2]]) == [1.0]
    return None


def text_of(completion: Any) -> str:
    """The text of a completion, which TRL passes as text or as a list of messages."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])
