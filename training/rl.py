"""Stage `rl`: GRPO on tasks with a verifier: sample many answers, score them, learn from the difference.

    deepspeed --num_gpus 2 training/rl.py --recipe recipes/demo.yaml --root .crawl2chat/data
    torchrun --nproc_per_node 2 -- training/rl.py --recipe recipes/demo.yaml --root .crawl2chat/data

Each step samples anew from the model it then moves (on-policy: the ratio of GRPO's objective is 1). A group whose
answers all score alike says nothing: it leaves the mean, not the step. The reward is the verifier's and nothing else:
no bonus for a call or a short answer, no KL penalty towards the model before. Shao et al. 2024 (DeepSeekMath), section
4.1; one denominator over all sampled tokens as in Yu et al. 2025 (DAPO), section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from inference.likelihood import log_probabilities
from inference.sampler import Sample, Sampler, Sampling, seeds
from inference.tools import load_tools
from pipeline import command
from pipeline.artifact import Building, Published, Stage
from tokenizer.chat import PAD, prompt
from training.engine.engine import rows_a_rank
from training.engine.loop import Loop
from training.engine.losses import Batch, supervised
from training.launch import processes
from training.launch.command import TrainingJob, parse
from training.launch.processes import World
from training.launch.stage import continued, open_stage
from training.rollouts import rewards
from training.rollouts.advantages import advantages
from training.rollouts.questions import Asked, Questions

STAGE = Stage("rl", 2, libraries=("torch", "transformers", "deepspeed"))
EVALUATION_QUESTIONS = 64  # held out, measured between steps; the evaluation stage asks more, and others
EVALUATION_SAMPLES = 4  # per question, at temperature 1
GAP_ROWS = 8  # samples per rank whose log-probabilities are computed twice, every step


@dataclass(frozen=True)
class PolicyLoss:
    """-sum of advantage x log-probability over the sampled tokens of a micro-batch, per sampled token of all ranks."""

    temperature: float

    def log_probabilities(self, model: nn.Module, batch: Batch) -> Tensor:
        """Of each id but the first, at the temperature it was sampled at [rows, n - 1]."""
        ids = batch["ids"]
        logits = model(input_ids=ids[:, :-1], attention_mask=batch["seen"][:, :-1], use_cache=False).logits
        return log_probabilities(logits.float() / self.temperature, ids[:, 1:])

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """See `losses.Loss`."""
        mask = batch["mask"][:, 1:]
        return -(self.log_probabilities(model, batch) * batch["advantages"][:, None] * mask).sum()

    def denominator(self, batch: Batch) -> Tensor:
        """See `losses.Loss`."""
        return supervised(batch)


class Reinforcement(Loop):
    """Rollouts of this rank's share of the questions, and the step they lead to."""

    def __init__(self, job: TrainingJob, world: World, building: Building, source: Published) -> None:
        self.rl = job.recipe.rl
        self.share = rows_a_rank(self.rl.prompts, world)
        super().__init__(job, world, building, STAGE, *continued(source), self.rl.steps)
        self.questions = Questions(self.rl.tasks, job.recipe.seed)
        self.sampler = Sampler(self.net, self.tokenizer, load_tools(job.recipe.assistant.tools))
        self.loss = PolicyLoss(self.rl.temperature)

    def prompts(self, asked: list[Asked]) -> list[list[int]]:
        """Ids of the questions, up to the answer."""
        return [prompt(one.question.messages(), self.tokenizer) for one in asked]

    def rollout(self, prompts: list[list[int]], samples: int, temperature: float, numbers: list[int]) -> list[Sample]:
        """`samples` of each prompt, in order; `numbers` name the questions, for their seeds."""
        repeated = [ids for ids in prompts for _ in range(samples)]
        drawn = [seed for number in numbers for seed in seeds(f"{self.job.recipe.seed}:rl:{number}", samples)]
        return self.sampler.sample(repeated, Sampling(self.rl.max_new_tokens, temperature), drawn)

    def scores(self, asked: list[Asked], samples: list[Sample]) -> list[float]:
        """Rewards of samples, as many of each question."""
        each = len(samples) // len(asked)
        return rewards.scores(self.sampler, [one for one in asked for _ in range(each)], samples)

    def step(self) -> dict[str, Any]:
        """Sample, score, learn."""
        # 1. This rank's questions of the step, and some samples of each from the model as it is now.
        first = self.engine.done * self.rl.prompts + self.world.rank * self.share
        numbers = list(range(first, first + self.share))
        asked = [self.questions.at(number) for number in numbers]
        prompts = self.prompts(asked)
        self.engine.refresh_plain()
        samples = self.rollout(prompts, self.rl.samples, self.rl.temperature, numbers)
        # 2. Rewards [questions, samples], and how much better each sample is than the others of its question.
        scored = torch.tensor(self.scores(asked, samples)).view(len(asked), -1)
        relative, informative = advantages(scored)
        batch = self.batch([ids for ids in prompts for _ in range(self.rl.samples)], samples, relative, informative)
        # 3. The numbers of the step over all ranks.
        told, informative_groups = self._numbers(scored, informative, samples, batch)
        if not informative_groups:  # every group of every rank scored alike: there is nothing to learn in this step
            self.engine.done += 1
            return told | {"loss": 0.0, "grad_norm": 0.0}
        # 4. One optimizer step towards the better samples.
        moved = self.engine.step(batch, self.loss)
        return told | {"loss": moved.loss, "grad_norm": moved.grad_norm, "lr": moved.lr}

    def _numbers(
        self, scored: Tensor, informative: Tensor, samples: list[Sample], batch: Batch
    ) -> tuple[dict[str, Any], int]:
        """Numbers of the step, and how many groups of all ranks have differing rewards."""
        sums = torch.tensor(
            [
                float(scored.sum()),
                float(sum(len(sample.ids) for sample in samples)),
                float(sum(sample.tools > 0 for sample in samples)),
                float(len(samples)),
                float(informative.sum()),
            ],
            dtype=torch.float64,
            device=self.world.device,
        )
        gap = torch.tensor(self._gap(batch, samples), dtype=torch.float64, device=self.world.device)
        if self.world.size > 1:
            dist.all_reduce(sums)
            dist.all_reduce(gap, op=dist.ReduceOp.MAX)
        reward, length, tools, count, groups = sums.tolist()
        numbers = {
            "reward": reward / count,
            "length": length / count,
            "tool_rate": tools / count,
            "informative_groups": groups / self.rl.prompts,
            "logprob_gap": float(gap),
        }
        return numbers, round(groups)

    def batch(
        self, prompts: list[list[int]], samples: list[Sample], relative: Tensor, informative: Tensor
    ) -> dict[str, Tensor]:
        """Rows [n, longest] of ids, mask (sampled tokens of informative groups), seen and advantages; padded right."""
        longest = max(len(ids) + len(sample.ids) for ids, sample in zip(prompts, samples, strict=True))
        ids = torch.full((len(samples), longest), self.tokenizer.special(PAD))
        mask, seen = torch.zeros_like(ids), torch.zeros_like(ids)
        each = len(samples) // len(informative)
        for row, (before, sample) in enumerate(zip(prompts, samples, strict=True)):
            size = len(before) + len(sample.ids)
            ids[row, :size] = torch.tensor([*before, *sample.ids])
            seen[row, :size] = 1
            if informative[row // each]:
                mask[row, len(before) : size] = torch.tensor(sample.mask)
        return {"ids": ids, "mask": mask, "seen": seen, "advantages": relative.flatten()}

    def _gap(self, batch: Batch, samples: list[Sample]) -> float:
        """Largest gap between the sampler's and the trainer's log-probabilities, on the first rows (trl#4772)."""
        part = {name: rows[:GAP_ROWS].to(self.world.device) for name, rows in batch.items()}
        self.net.eval()
        with torch.no_grad():
            learned = self.loss.log_probabilities(self.net, part).cpu()
        self.net.train()
        most = 0.0
        for row, sample in enumerate(samples[:GAP_ROWS]):
            end = int(batch["seen"][row].sum()) - 1
            own = torch.tensor(sample.mask, dtype=torch.bool)
            gaps = (learned[row, end - len(sample.ids) : end] - torch.tensor(sample.logprobs)).abs()
            most = max(most, float(gaps[own].max()))
        return most

    def evaluate(self) -> dict[str, Any]:
        """Greedy and sampled accuracy of each task on held-out questions, which the ranks share."""
        held_out = self.questions.held_out(EVALUATION_QUESTIONS)
        names = [task.name for task in self.questions.tasks]
        count = {name: sum(one.task.name == name for one in held_out) for name in names}
        share = range(self.world.rank, len(held_out), self.world.size)
        mine = [held_out[number] for number in share]
        numbers: dict[str, Any] = {}
        for how, temperature, each in (("greedy_accuracy", 0.0, 1), ("sampled_accuracy", 1.0, EVALUATION_SAMPLES)):
            right = torch.zeros(len(names), dtype=torch.float64, device=self.world.device)
            if mine:
                samples = self.rollout(self.prompts(mine), each, temperature, [-1 - number for number in share])
                for place, score in enumerate(self.scores(mine, samples)):
                    right[names.index(mine[place // each].task.name)] += score
            if self.world.size > 1:
                dist.all_reduce(right)
            numbers |= {
                f"{name}.{how}": value / (count[name] * each) for name, value in zip(names, right.tolist(), strict=True)
            }
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
