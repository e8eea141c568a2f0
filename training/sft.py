"""Stage `sft`: a base model becomes an assistant, on conversations, with loss on the assistant's tokens only.

deepspeed --num_gpus 2 training/sft.py --recipe recipes/demo.yaml --root .crawl2chat/data
torchrun --nproc_per_node 2 training/sft.py --recipe recipes/demo.yaml --root .crawl2chat/data
"""

from __future__ import annotations

import math
from typing import Any

import torch

from pipeline import errors
from pipeline.artifact import Building, Counts, Published, Stage
from pipeline.errors import InputError
from tokenizer.chat import PAD, render
from training import conversations, launch
from training.engine import rows_a_rank, token_loss
from training.launch import Job, World
from training.loop import Loop, open_stage
from training.packing import Packed, pack

STAGE = Stage("sft", 1, libraries=("torch", "transformers", "deepspeed"))
_MEAN_STEPS = 10  # steps that `loss_first` and `loss_last` average over


class FineTuning(Loop):
    """The conversations, packed, and the order in which they are seen."""

    def __init__(self, job: Job, world: World, building: Building, source: Published) -> None:
        section = job.recipe.sft
        rows_a_rank(section.batch, world)
        super().__init__(job, world, building, source, STAGE, 1)
        found = conversations.load(list(section.conversations), section.arithmetic, job.recipe.seed)
        rendered = [render(messages, self.tokenizer) for messages in found]
        self.packed: Packed = pack(rendered, section.window, self.tokenizer.special(PAD))
        self.total = len(found)
        if not self.packed.kept:
            raise InputError(
                f"none of {self.total} conversations fits a window of {section.window}", "widen sft.window"
            )
        self.steps = self.engine.total = math.ceil(section.epochs * len(self.packed.ids) / section.batch)

    def rows(self, step: int) -> torch.Tensor:
        """Row numbers of this rank at a step: a seeded order each epoch, a pure function of the global sample index."""
        count, batch = len(self.packed.ids), self.job.recipe.sft.batch
        size = rows_a_rank(batch, self.world)
        first = step * batch + self.world.rank * size
        found = []
        for index in range(first, first + size):
            epoch, at = divmod(index, count)
            order = torch.randperm(count, generator=torch.Generator().manual_seed(self.job.recipe.seed * 1009 + epoch))
            found.append(int(order[at]))
        return torch.tensor(found)

    def step(self) -> dict[str, Any]:
        """One step over packed rows."""
        rows = self.rows(self.engine.done)
        batch = {
            "ids": self.packed.ids[rows],
            "mask": self.packed.mask[rows],
            "positions": self.packed.positions[rows],
        }
        found = self.engine.step(batch, token_loss)
        return {"loss": found.loss, "grad_norm": found.grad_norm, "lr": found.lr, "tokens": found.tokens}

    def numbers(self) -> dict[str, Any]:
        """Results for the manifest."""
        losses = [row["loss"] for row in self.metrics]
        mean = [sum(part) / len(part) for part in (losses[:_MEAN_STEPS], losses[-_MEAN_STEPS:])]
        return {"loss_first": round(mean[0], 6), "loss_last": round(mean[1], 6), "rows": len(self.packed.ids)}

    def counts(self) -> Counts:
        """Conversations in and out."""
        dropped = {reason: number for reason, number in self.packed.dropped.items() if number}
        return Counts(in_=self.total, kept=self.packed.kept, dropped=dropped)


def main() -> None:
    """Entry point."""
    job = launch.parse("sft.py")
    world = launch.start(job.recipe.seed)
    opened, source = open_stage(job, world, STAGE, "pretrain")
    if isinstance(opened, Building):
        stage = FineTuning(job, world, opened, source)
        stage.run()
        stage.publish(stage.numbers(), stage.counts())
    launch.wait(world)
    launch.stop()


if __name__ == "__main__":
    errors.run(main)
