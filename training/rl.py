"""Stage `rl`: GRPO on tasks with a verifier: sample many answers per question, score them, learn from the difference.

    deepspeed --num_gpus 2 training/rl.py --recipe recipes/demo.yaml --root .crawl2chat/data
    torchrun --nproc_per_node 2 -- training/rl.py --recipe recipes/demo.yaml --root .crawl2chat/data

Each step samples from the model that it then updates (on-policy: the ratio of GRPO's objective is 1). A group whose
answers all have the same reward has no advantage to learn from: its tokens are left out of the loss and of its mean.
The reward is the verifier's and nothing else: no bonus for a tool call or a short answer, no KL penalty towards the
model before. Shao et al. 2024 (DeepSeekMath), section 4.1; one denominator over all sampled tokens as in Yu et al. 2025
(DAPO), section 3.3.
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
from pipeline.artifact import Building, Published
from tokenizer.chat import PAD, prompt
from training.engine.engine import rows_per_rank
from training.engine.loop import Loop
from training.engine.losses import Batch, supervised
from training.launch import opening, processes
from training.launch.command import TrainingJob, parse
from training.launch.processes import World
from training.launch.stage import load_model, opened
from training.rollouts import rewards
from training.rollouts.advantages import group_advantages
from training.rollouts.questions import Questions, TaskQuestion

STAGE = opening.RL.stage
EVALUATION_QUESTIONS = 64  # of the held-out split, between steps; the evaluation stage has more, and others
EVALUATION_SAMPLES = 4  # per question, at temperature 1
GAP_ROWS = 8  # samples per rank and step whose log-probabilities sampler and trainer both compute: a cheap spot check


@dataclass(frozen=True)
class PolicyLoss:
    """-sum of advantage x log-probability over the sampled tokens of a micro-batch, per sampled token of all ranks."""

    temperature: float

    def log_probabilities(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probability of each id but the first [rows, n - 1], at the temperature of sampling."""
        ids = batch["ids"]
        logits = model(input_ids=ids[:, :-1], attention_mask=batch["attention_mask"][:, :-1], use_cache=False).logits
        return log_probabilities(logits.float() / self.temperature, ids[:, 1:])

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """See `losses.Loss`."""
        mask = batch["mask"][:, 1:]
        return -(self.log_probabilities(model, batch) * batch["advantages"][:, None] * mask).sum()

    def denominator(self, batch: Batch) -> Tensor:
        """See `losses.Loss`."""
        return supervised(batch)


class Reinforcement(Loop):
    """GRPO: rollouts for this rank's share of a step's questions, and the optimizer step on them."""

    def __init__(self, job: TrainingJob, world: World, building: Building, source: Published) -> None:
        self.rl = job.recipe.rl
        self.rank_questions = rows_per_rank(self.rl.prompts, world)
        super().__init__(job, world, building, STAGE, *load_model(source), self.rl.steps)
        self.questions = Questions(self.rl.tasks, job.recipe.seed)
        self.sampler = Sampler(self.net, self.tokenizer, load_tools(job.recipe.assistant.tools))
        self.loss = PolicyLoss(self.rl.temperature)

    def prompt_ids(self, questions: list[TaskQuestion]) -> list[list[int]]:
        """Ids of each question's conversation, up to the answer."""
        return [prompt(question.question.messages(), self.tokenizer) for question in questions]

    def rollout(self, prompts: list[list[int]], samples: int, temperature: float, numbers: list[int]) -> list[Sample]:
        """`samples` per prompt, in the order of prompts. `numbers` identify the questions, for the samples' seeds."""
        repeated = [ids for ids in prompts for _ in range(samples)]
        row_seeds = [seed for number in numbers for seed in seeds(f"{self.job.recipe.seed}:rl:{number}", samples)]
        return self.sampler.sample(repeated, Sampling(self.rl.max_new_tokens, temperature), row_seeds)

    def scores(self, questions: list[TaskQuestion], samples: list[Sample]) -> list[float]:
        """Rewards of samples, of which each question has as many."""
        group = len(samples) // len(questions)
        return rewards.scores(self.sampler, [question for question in questions for _ in range(group)], samples)

    def step(self) -> dict[str, Any]:
        """See `Loop`: sample, score, learn."""
        # 1. This rank's questions of the step, and a group of samples for each from the model as it is now.
        first = self.engine.done * self.rl.prompts + self.world.rank * self.rank_questions
        numbers = list(range(first, first + self.rank_questions))
        questions = [self.questions.at(number) for number in numbers]
        prompts = self.prompt_ids(questions)
        self.engine.refresh_plain()
        samples = self.rollout(prompts, self.rl.samples, self.rl.temperature, numbers)
        # 2. Rewards [questions, samples], and the advantage of each sample over the others of its group.
        scored = torch.tensor(self.scores(questions, samples)).view(len(questions), -1)
        advantages, informative = group_advantages(scored)
        batch = self.batch([ids for ids in prompts for _ in range(self.rl.samples)], samples, advantages, informative)
        # 3. Metrics over all ranks.
        metrics, informative_groups = self._rollout_metrics(scored, informative, samples, batch)
        if not informative_groups:  # every group of every rank scored alike: there is nothing to learn in this step
            self.engine.done += 1
            return metrics | {"loss": 0.0, "grad_norm": 0.0}
        # 4. One optimizer step towards the better samples.
        update = self.engine.step(batch, self.loss)
        return metrics | {"loss": update.loss, "grad_norm": update.grad_norm, "lr": update.lr}

    def _rollout_metrics(
        self, scored: Tensor, informative: Tensor, samples: list[Sample], batch: Batch
    ) -> tuple[dict[str, Any], int]:
        """Metrics of the step's rollouts, and how many groups of all ranks are informative (their rewards differ)."""
        # Sums, not means: the mean over ranks is taken once, of the sums of all.
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
        gap = torch.tensor(self._logprob_gap(batch, samples), dtype=torch.float64, device=self.world.device)
        if self.world.size > 1:
            dist.all_reduce(sums)
            dist.all_reduce(gap, op=dist.ReduceOp.MAX)
        reward, length, tools, count, groups = sums.tolist()
        metrics = {
            "reward": reward / count,
            "length": length / count,
            "tool_rate": tools / count,
            "informative_groups": groups / self.rl.prompts,
            "logprob_gap": float(gap),
        }
        return metrics, round(groups)

    def batch(
        self, prompts: list[list[int]], samples: list[Sample], advantages: Tensor, informative: Tensor
    ) -> dict[str, Tensor]:
        """The rows to learn from, prompt and sample, padded on the right to the longest: `ids`, `attention_mask` and
        `mask` (tokens the model sampled, in informative groups) [rows, longest], `advantages` [rows].
        """
        longest = max(len(ids) + len(sample.ids) for ids, sample in zip(prompts, samples, strict=True))
        ids = torch.full((len(samples), longest), self.tokenizer.special(PAD))
        mask, attention_mask = torch.zeros_like(ids), torch.zeros_like(ids)
        group = len(samples) // len(informative)
        for row, (prompt_ids, sample) in enumerate(zip(prompts, samples, strict=True)):
            size = len(prompt_ids) + len(sample.ids)
            ids[row, :size] = torch.tensor([*prompt_ids, *sample.ids])
            attention_mask[row, :size] = 1
            if informative[row // group]:
                mask[row, len(prompt_ids) : size] = torch.tensor(sample.mask)  # 0 at a tool's output
        return {"ids": ids, "mask": mask, "attention_mask": attention_mask, "advantages": advantages.flatten()}

    def _logprob_gap(self, batch: Batch, samples: list[Sample]) -> float:
        """Largest difference of the sampler's and the trainer's log-probabilities in the first rows (trl#4772).

        On-policy training takes the two for equal; a wrong mask, position or temperature shows here first.
        """
        part = {name: rows[:GAP_ROWS].to(self.world.device) for name, rows in batch.items()}
        self.net.eval()
        with torch.no_grad():
            trainer = self.loss.log_probabilities(self.net, part).cpu()
        self.net.train()
        largest = 0.0
        for row, sample in enumerate(samples[:GAP_ROWS]):
            end = int(batch["attention_mask"][row].sum()) - 1  # log-probabilities begin with the second id
            sampled = torch.tensor(sample.mask, dtype=torch.bool)
            gaps = (trainer[row, end - len(sample.ids) : end] - torch.tensor(sample.logprobs)).abs()
            largest = max(largest, float(gaps[sampled].max()))
        return largest

    def evaluate(self) -> dict[str, Any]:
        """Greedy and sampled accuracy per task on held-out questions, which the ranks share."""
        # 1. This rank's share of the questions. For the seeds their numbers are negative, as no training question's is.
        held_out = self.questions.held_out(EVALUATION_QUESTIONS)
        tasks = [task.name for task in self.questions.tasks]
        count = {name: sum(question.task.name == name for question in held_out) for name in tasks}
        share = range(self.world.rank, len(held_out), self.world.size)
        own = [held_out[number] for number in share]
        # 2. Correct answers per task, summed over ranks; a rank without a question takes part in the sum alone.
        metrics: dict[str, Any] = {}
        for metric, temperature, samples_each in (
            ("greedy_accuracy", 0.0, 1),
            ("sampled_accuracy", 1.0, EVALUATION_SAMPLES),
        ):
            correct = torch.zeros(len(tasks), dtype=torch.float64, device=self.world.device)
            if own:
                samples = self.rollout(self.prompt_ids(own), samples_each, temperature, [-1 - n for n in share])
                for row, score in enumerate(self.scores(own, samples)):
                    correct[tasks.index(own[row // samples_each].task.name)] += score
            if self.world.size > 1:
                dist.all_reduce(correct)
            metrics |= {
                f"{name}.{metric}": value / (count[name] * samples_each)
                for name, value in zip(tasks, correct.tolist(), strict=True)
            }
        return metrics

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
    with opened(job, opening.RL) as (world, building, sources):
        if isinstance(building, Building):
            stage = Reinforcement(job, world, building, *sources)
            stage.run()
            stage.publish(stage.numbers())


if __name__ == "__main__":
    processes.run(main)
