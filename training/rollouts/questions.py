"""Training and held-out questions: a pure function of seed and index, drawn from tasks by their weights."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from evaluation import tasks
from evaluation.tasks import Question, Task


@dataclass(frozen=True)
class TaskQuestion:
    """A question with its task, whose verifier rewards the answers."""

    task: Task
    question: Question


class Questions:
    """Questions of several tasks, drawn by their weights."""

    def __init__(self, weights: Mapping[str, float], seed: int) -> None:
        self.tasks, self.weights, self.seed = [tasks.load_task(name) for name in weights], list(weights.values()), seed

    def at(self, index: int) -> TaskQuestion:
        """The training question of this index, the same whatever the number of ranks."""
        key = f"{self.seed}:rl:{index}"
        [task] = random.Random(key).choices(self.tasks, self.weights)
        return TaskQuestion(task, next(task.questions("train", key)))

    def held_out(self, count: int) -> list[TaskQuestion]:
        """About `count` held-out questions, divided among the tasks by their weights, at least one per task."""
        questions: list[TaskQuestion] = []
        for task, weight in zip(self.tasks, self.weights, strict=True):
            share = max(1, round(count * weight / sum(self.weights)))
            drawn = islice(task.questions("held_out", f"{self.seed}:rl:held_out:{task.name}"), share)
            questions += [TaskQuestion(task, question) for question in drawn]
        return questions
