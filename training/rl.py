"""Stage `rl`: GRPO on tasks with a verifier: sample many answers, score them, learn from the difference.

    deepspeed --num_gpus 2 training/rl.py --recipe recipes/demo.yaml --root .crawl2chat/data
    torchrun --nproc_per_node 2 -- training/rl.py --recipe recipes/demo.yaml --root .crawl2chat/data

Each step samples anew from the model it then moves (on-policy: the ratio of GRPO's objective is 1). A group whose
answers all score alike says nothing: it leaves the mean, not the step. The reward is the verifier's and nothing else:
no bonus for a call or a short answer, no KL penalty towards the model before. Shao et al. 2024 (DeepSeekMath), section
4.1; one denominator over all sampled tokens as in Yu et al. 2025 (DAPO), section 3.3.
"""

from __future__ import annotations

import functools
import random
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evaluation.tasks.arithmetic import Arithmetic, Question
from inference.likelihood import log_probabilities
from inference.sampler import Sample, Sampler, seeds
from inference.tools.calculator import calculator
from pipeline import command
from pipeline.artifact import Building, Published, Stage
from tokenizer.chat import PAD, Message, prompt
from training.engine.engine import rows_a_rank
from training.engine.loop import Loop
from training.engine.losses import Batch
from training.launch import processes
from training.launch.command import TrainingJob, parse
from training.launch.processes import World
from training.launch.stage import continued, open_stage

STAGE = Stage("rl", 1, libraries=("torch", "transformers", "deepspeed"))
LOOK_QUESTIONS = 64  # held-out questions of a look between steps; the evaluation stage asks more, and others
LOOK_SAMPLES = 4  # answers a question of a look, at temperature 1
GAP_ROWS = 8  # answers a rank whose log-probabilities are computed twice, every step
EPSILON = 1e-4  # keeps the advantage of a group with almost equal rewards finite


def advantages(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Group-relative advantages of rewards [questions, samples], and which groups say something [questions].

    (r - mean) / (std + epsilon); zero where all of a group scored alike.
    """
    spread = rewards.std(dim=1, unbiased=False)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (spread[:, None] + EPSILON), spread > 0


def policy(model: nn.Module, batch: Batch, temperature: float) -> Tensor:
    """Log-probability of each id but the first, at the temperature it was sampled at [rows, n - 1]."""
    ids = batch["ids"]
    logits = model(input_ids=ids[:, :-1], attention_mask=batch["seen"][:, :-1], use_cache=False).logits
    return log_probabilities(logits.float() / temperature, ids[:, 1:])


def policy_loss(model: nn.Module, batch: Batch, temperature: float) -> Tensor:
    """-sum of advantage x log-probability over the sampled tokens of a micro-batch."""
    return -(policy(model, batch, temperature) * batch["advantages"][:, None] * batch["mask"][:, 1:]).sum()


class Reinforcement(Loop):
    """Rollouts of this rank's share of the questions, and the step they lead to."""

    def __init__(self, job: TrainingJob, world: World, building: Building, source: Published) -> None:
        self.rl = job.recipe.rl
        self.share = rows_a_rank(self.rl.prompts, world)
        super().__init__(job, world, building, STAGE, *continued(source), self.rl.steps)
        self.task = Arithmetic()
        self.sampler = Sampler(self.net, self.tokenizer, calculator)

    def questions(self, first: int) -> list[Question]:
        """This rank's share of questions from the global number `first` on."""
        return [
            self.task.question(random.Random(f"{self.job.recipe.seed}:rl:{index}"), "train")
            for index in range(first, first + self.share)
        ]

    def ask(self, questions: list[Question]) -> list[list[int]]:
        """The prompts of the questions."""
        return [prompt([Message(role="user", content=q.text)], self.tokenizer) for q in questions]

    def rollout(self, prompts: list[list[int]], samples: int, temperature: float, numbers: list[int]) -> list[Sample]:
        """`samples` answers to each prompt, in order; `numbers` name the questions, for their seeds."""
        repeated = [ids for ids in prompts for _ in range(samples)]
        drawn = [seed for number in numbers for seed in seeds(f"{self.job.recipe.seed}:rl:{number}", samples)]
        return self.sampler.sample(repeated, self.rl.max_new_tokens, temperature, drawn)

    def scores(self, questions: list[Question], found: list[Sample]) -> list[float]:
        """Rewards, in order. An answer that did not end earns nothing."""
        each = len(found) // len(questions)
        answers = [q.answer for q in questions for _ in range(each)]
        right = self.task.reward([], [self.sampler.answer(one) for one in found], answer=answers)
        return [score if one.finished else 0.0 for score, one in zip(right, found, strict=True)]

    def step(self) -> dict[str, Any]:
        """Ask, score, learn."""
        step = self.engine.done
        first = step * self.rl.prompts + self.world.rank * self.share
        questions = self.questions(first)
        asked = self.ask(questions)
        self.engine.refresh_plain()
        found = self.rollout(asked, self.rl.samples, self.rl.temperature, list(range(first, first + self.share)))
        rewards = torch.tensor(self.scores(questions, found)).view(len(questions), -1)
        worth, telling = advantages(rewards)
        batch = self.batch([ids for ids in asked for _ in range(self.rl.samples)], found, worth, telling)
        sums = torch.tensor(
            [
                float(rewards.sum()),
                float(sum(len(one.ids) for one in found)),
                float(sum(one.tools > 0 for one in found)),
                float(len(found)),
                float(telling.sum()),
            ],
            dtype=torch.float64,
            device=self.world.device,
        )
        gap = torch.tensor(self._gap(batch, found), dtype=torch.float64, device=self.world.device)
        if self.world.size > 1:
            dist.all_reduce(sums)
            dist.all_reduce(gap, op=dist.ReduceOp.MAX)
        numbers = {
            "reward": float(sums[0] / sums[3]),
            "length": float(sums[1] / sums[3]),
            "tool_rate": float(sums[2] / sums[3]),
            "telling_groups": float(sums[4] / self.rl.prompts),
            "logprob_gap": float(gap),
        }
        if sums[4] == 0:  # every group of every rank scored alike: there is nothing to learn in this step
            self.engine.done += 1
            return numbers | {"loss": 0.0, "grad_norm": 0.0}
        moved = self.engine.step(batch, functools.partial(policy_loss, temperature=self.rl.temperature))
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

    def _gap(self, batch: Batch, found: list[Sample]) -> float:
        """Largest gap between the sampler's and the trainer's log-probabilities, on the first rows (trl#4772)."""
        part = {name: rows[:GAP_ROWS].to(self.world.device) for name, rows in batch.items()}
        self.net.eval()
        with torch.no_grad():
            learned = policy(self.net, part, self.rl.temperature).cpu()
        self.net.train()
        most = 0.0
        for row, one in enumerate(found[:GAP_ROWS]):
            end = int(batch["seen"][row].sum()) - 1
            own = torch.tensor(one.mask, dtype=torch.bool)
            gaps = (learned[row, end - len(one.ids) : end] - torch.tensor(one.logprobs)).abs()
            most = max(most, float(gaps[own].max()))
        return most

    def evaluate(self) -> dict[str, Any]:
        """Greedy and sampled accuracy on held-out questions, which the ranks share."""
        rng = random.Random(f"{self.job.recipe.seed}:rl:look")
        questions = [self.task.question(rng, "held_out") for _ in range(LOOK_QUESTIONS)]
        share = range(self.world.rank, LOOK_QUESTIONS, self.world.size)
        mine = [questions[number] for number in share]
        numbers: dict[str, Any] = {}
        for name, temperature, each in (("greedy_accuracy", 0.0, 1), ("sampled_accuracy", 1.0, LOOK_SAMPLES)):
            right = torch.zeros((), dtype=torch.float64, device=self.world.device)
            if mine:
                found = self.rollout(self.ask(mine), each, temperature, [-1 - number for number in share])
                right += sum(self.scores(mine, found))
            if self.world.size > 1:
                dist.all_reduce(right)
            numbers[name] = float(right) / (LOOK_QUESTIONS * each)
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
    job = parse(__doc__)
    world = processes.start(job.recipe.seed)
    opened, sources = open_stage(job, world, STAGE, lambda: [command.source(job, "sft")])
    if isinstance(opened, Building):
        stage = Reinforcement(job, world, opened, *sources)
        stage.run()
        stage.publish(stage.numbers())
    processes.barrier(world)


if __name__ == "__main__":
    processes.run(main)
