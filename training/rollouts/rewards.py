"""What a sample is worth. rl does not know where a reward comes from; today it is the verifier of a question's task."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation import tasks
from inference.sampler import Sample, Sampler
from training.rollouts.questions import Asked


def scores(sampler: Sampler, asked: Sequence[Asked], samples: Sequence[Sample]) -> list[float]:
    """The reward of each sample of the question beside it. A sample that did not end earns nothing."""
    found = [0.0] * len(samples)
    for name in sorted({one.task.name for one in asked}):
        own = [place for place, one in enumerate(asked) if one.task.name == name]
        answers = [sampler.answer(samples[place]) for place in own]
        rewards = tasks.rewards(asked[own[0]].task, [asked[place].question for place in own], answers)
        for place, reward in zip(own, rewards, strict=True):
            found[place] = reward if samples[place].finished else 0.0
    return found
