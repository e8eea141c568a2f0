"""Stage `rl`: GRPO on tasks with a verifier: sample many answers, score them, learn from the difference.

    deepspeed --num_gpus 2 training/rl.py --recipe recipes/demo.yaml --root .crawl2chat/data
    torchrun --nproc_per_node 2 training/rl.py --recipe recipes/demo.yaml --root .crawl2chat/data

Each step samples anew from the model it then moves (on-policy: the ratio of GRPO's objective is 1). A group whose
answers all score alike says nothing: it leaves the mean, not the step. Shao et al. 2024 (DeepSeekMath), section 4.1;
advantages and one denominator over all sampled tokens as in Yu et al. 2025 (DAPO), section 3.3.
"""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline import errors
from pipeline.artifact import Building, Published, Stage
from tokenizer.chat import PAD, Message, prompt
from training import launch
from training.engine import Batch, log_probabilities, rows_a_rank
from training.launch import Job, World
from training.loop import Loop, open_stage
from training.sampler import Sample, Sampler
from training.tasks import Arithmetic, Question
from training.tools import calculator

STAGE = Stage("rl", 1, libraries=("torch", "transformers", "deepspeed"))
LOOK_QUESTIONS = 64  # held-out questions of a look between steps; the evaluation stage asks more, and others
EPSILON = 1e-4  # keeps the advantage of a group with almost equal rewards finite


def advantages(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Group-relative advantages of rewards [questions, samples], and which groups say something [questions].

    (r - mean) / (std + epsilon); zero where all of a group scored alike.
    """
    spread = rewards.std(dim=1, unbiased=False)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (spread[:, None] + EPSILON), spread > 0


def policy_loss(model: nn.Module, batch: Batch) -> Tensor:
    """-sum of advantage x log-probability over the sampled tokens of a micro-batch."""
    ids, mask = batch["ids"], batch["mask"][:, 1:]
    logits = model(input_ids=ids[:, :-1], attention_mask=batch["seen"][:, :-1], use_cache=False).logits
    return -(log_probabilities(logits, ids[:, 1:]) * batch["advantages"][:, None] * mask).sum()


class Reinforcement(Loop):
    """Rollouts of this rank's share of the questions, and the step they lead to."""

    def __init__(self, job: Job, world: World, building: Building, source: Published) -> None:
        self.rl = job.recipe.rl
        self.share = rows_a_rank(self.rl.prompts, world)
        super().__init__(job, world, building, source, STAGE, self.rl.steps)
        self.task = Arithmetic()
        self.sampler = Sampler(self.net, self.tokenizer, calculator)

    def questions(self, step: int) -> list[Question]:
        """This rank's questions of a step; a pure function of the global question index."""
        first = step * self.rl.prompts + self.world.rank * self.share
        return [
            self.task.question(random.Random(f"{self.job.recipe.seed}:rl:{index}"), "train")
            for index in range(first, first + self.share)
        ]

    def rollout(self, questions: list[Question], samples: int, temperature: float, seed: int) -> list[Sample]:
        """`samples` answers to each question, in order."""
        asked = [prompt([Message(role="user", content=q.text)], self.tokenizer) for q in questions]
        repeated = [ids for ids in asked for _ in range(samples)]
        return self.sampler.sample(repeated, self.rl.max_new_tokens, temperature, seed)

    def scores(self, questions: list[Question], found: list[Sample]) -> list[float]:
        """Rewards, in order. An answer that did not end earns nothing."""
        each = len(found) // len(questions)
        answers = [q.answer for q in questions for _ in range(each)]
        right = self.task.reward([], [self.sampler.answer(one) for one in found], answer=answers)
        return [score if one.finished else 0.0 for score, one in zip(right, found, strict=True)]

    def step(self) -> dict[str, Any]:
        """Ask, score, learn."""
        step = self.engine.done
        questions = self.questions(step)
        seed = (self.job.recipe.seed * 1_000_003 + step) * 1009 + self.world.rank
        found = self.rollout(questions, self.rl.samples, self.rl.temperature, seed)
        rewards = torch.tensor(self.scores(questions, found)).view(len(questions), -1)
        worth, telling = advantages(rewards)
        asked = [prompt([Message(role="user", content=q.text)], self.tokenizer) for q in questions]
        batch = self.batch([ids for ids in asked for _ in range(self.rl.samples)], found, worth, telling)
        gap = self._gap(batch, found)
        sums = torch.tensor(
            [
                float(rewards.sum()),
                float(sum(len(one.ids) for one in found)),
                float(sum(one.tools > 0 for one in found)),
                float(len(found)),
                float(telling.sum()),
                gap,
            ],
            dtype=torch.float64,
        )
        if self.world.size > 1:
            dist.all_reduce(sums)
        numbers = {
            "reward": float(sums[0] / sums[3]),
            "length": float(sums[1] / sums[3]),
            "tool_rate": float(sums[2] / sums[3]),
            "telling_groups": float(sums[4] / self.rl.prompts),
            "logprob_gap": float(sums[5] / self.world.size),
        }
        if sums[4] == 0:  # every group of every rank scored alike: there is nothing to learn in this step
            self.engine.done += 1
            return numbers | {"loss": 0.0, "grad_norm": 0.0}
        moved = self.engine.step(batch, policy_loss)
        return numbers | {"loss": moved.loss, "grad_norm": moved.grad_norm, "lr": moved.lr}

    def batch(self, prompts: list[list[int]], found: list[Sample], worth: Tensor, telling: Tensor) -> dict[str, Tensor]:
        """Rows [n, longest] of ids, mask (sampled tokens of telling groups), seen and advantages; padded right."""
        longest = max(len(a) + len(b.ids) for a, b in zip(prompts, found, strict=True))
        ids = torch.full((len(found), longest), self.tokenizer.special(PAD))
        mask, seen = torch.zeros_like(ids), torch.zeros_like(ids)
        each = len(found) // len(telling)
        for row, (before, one) in enumerate(zip(prompts, found, strict=True)):
            size = len(before) + len(one.ids)
            ids[row, :size] = torch.tensor([*before, *one.ids])
            seen[row, :size] = 1
            if telling[row // each]:
                mask[row, len(before) : size] = torch.tensor(one.mask)
        return {"ids": ids, "mask": mask, "seen": seen, "advantages": worth.flatten()}

    def _gap(self, batch: dict[str, Tensor], found: list[Sample]) -> float:
        """Largest difference between the sampler's and the trainer's log-probabilities, on the first rows (trl#4772)."""
        rows = slice(0, 8)
        ids = batch["ids"][rows]
        self.net.eval()
        with torch.no_grad():
            logits = self.net(input_ids=ids[:, :-1], attention_mask=batch["seen"][rows, :-1], use_cache=False).logits
        self.net.train()
        learned = log_probabilities(logits, ids[:, 1:])
        most = 0.0
        for row, one in enumerate(found[rows]):
            end = int(batch["seen"][row].sum()) - 1
            piece = learned[row, end - len(one.ids) : end]
            own = torch.tensor(one.mask, dtype=torch.bool)
            most = max(most, float((piece - torch.tensor(one.logprobs)).abs()[own].max()))
        return most

    def look(self) -> dict[str, Any]:
        """Greedy and sampled accuracy on held-out questions. Rank 0 asks; the others wait."""
        numbers: dict[str, Any] = {}
        if self.world.first:
            rng = random.Random(f"{self.job.recipe.seed}:rl:look")
            questions = [self.task.question(rng, "held_out") for _ in range(LOOK_QUESTIONS)]
            for name, temperature, each in (("greedy_accuracy", 0.0, 1), ("sampled_accuracy", 1.0, 4)):
                found = self.rollout(questions, each, temperature, self.job.recipe.seed)
                numbers[name] = sum(self.scores(questions, found)) / len(found)
        launch.wait(self.world)
        return numbers

    def numbers(self) -> dict[str, Any]:
        """Results for the manifest."""
        return {
            "reward_first": round(self.metrics[0]["reward"], 6),
            "reward_last": round(self.metrics[-1]["reward"], 6),
            "logprob_gap": round(max(row["logprob_gap"] for row in self.metrics), 6),
        }


def main() -> None:
    """Entry point."""
    job = launch.parse("rl.py")
    world = launch.start(job.recipe.seed)
    opened, source = open_stage(job, world, STAGE, "sft")
    if isinstance(opened, Building):
        stage = Reinforcement(job, world, opened, source)
        stage.run()
        stage.publish(stage.numbers())
    launch.wait(world)
    launch.stop()


if __name__ == "__main__":
    errors.run(main)
