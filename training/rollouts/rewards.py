"""Rewards of samples. rl does not know where a reward comes from; today it is the verifier of the question's task."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation import tasks
from inference.sampler import Sample, Sampler
from training.rollouts.questions import TaskQuestion


def scores(sampler: Sampler, questions: Sequence[TaskQuestion], samples: Sequence[Sample]) -> list[float]:
    """The reward of each sample as an answer to the question beside it; 0 for a sample cut at the length limit.

    A cut sample may hold the right number by chance, or say it and go on for ever.
    """
    scored = [0.0] * len(samples)
    # Task by task, since a verifier takes all its answers at once (TRL's signature).
    for name in sorted({question.task.name for question in questions}):
        rows = [row for row, question in enumerate(questions) if question.task.name == name]
        answers = [sampler.answer(samples[row]) for row in rows]
        rewards = tasks.rewards(questions[rows[0]].task, [questions[row].question for row in rows], answers)
        for row, reward in zip(rows, rewards, strict=True):
            scored[row] = reward if samples[row].finished else 0.0
    return scored
