"""Stage `sft`: a base model becomes an assistant, on conversations, with loss on the assistant's tokens only.

    deepspeed --num_gpus 2 training/sft.py --recipe recipes/demo.yaml --root .crawl2chat/data
    torchrun --nproc_per_node 2 -- training/sft.py --recipe recipes/demo.yaml --root .crawl2chat/data

One conversation in fifty, chosen by a hash of its ids, is never learned: its loss is `validation_loss`.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pipeline import command
from pipeline.artifact import Building, Counts, Published, Stage
from pipeline.errors import InputError
from tokenizer.chat import PAD, Rendered, render
from training.data import conversations
from training.data.packing import Packed, pack
from training.engine.engine import rows_a_rank
from training.engine.loop import Loop, loss_ends
from training.engine.losses import Batch, TokenLoss, supervised, token_loss
from training.launch import processes
from training.launch.command import TrainingJob, parse
from training.launch.processes import World
from training.launch.stage import continued, open_stage

STAGE = Stage("sft", 2, libraries=("torch", "transformers", "deepspeed"))
VALIDATION_SHARE = 0.02  # of the distinct conversations: only the validation loss sees them


def held_out(conversation: Rendered) -> bool:
    """Whether a conversation is for validation: equal ones always fall on the same side."""
    draw = hashlib.sha256(np.asarray(conversation.ids, dtype=np.int64).tobytes()).digest()
    return int.from_bytes(draw[:4], "big") < VALIDATION_SHARE * 2**32


class FineTuning(Loop):
    """The conversations, packed, and the order in which they are seen."""

    def __init__(self, job: TrainingJob, world: World, building: Building, source: Published) -> None:
        section = job.recipe.sft
        self.share = rows_a_rank(section.batch, world)
        net, tokenizer = continued(source)
        found = conversations.load(section, job.recipe.assistant.tools, job.recipe.seed)
        rendered = [render(messages, tokenizer) for messages in found]
        learned = [one for one in rendered if not held_out(one)]
        pad = tokenizer.special(PAD)
        self.packed: Packed = pack(learned, section.window, pad)
        # Equal conversations count once here.
        validation = list({tuple(one.ids): one for one in rendered if held_out(one)}.values())
        self.validation: Packed = pack(validation, section.window, pad)
        if not self.packed.kept:
            raise InputError(
                f"none of {len(found)} conversations fits a window of {section.window}", "widen sft.window"
            )
        dropped = self.packed.dropped | {"held_out": len(found) - len(learned)}
        self.counts = Counts(in_=len(found), kept=self.packed.kept, dropped={k: n for k, n in dropped.items() if n})
        steps = math.ceil(section.epochs * len(self.packed.ids) / section.batch)
        super().__init__(job, world, building, STAGE, net, tokenizer, steps)

    @functools.lru_cache(maxsize=2)  # noqa: B019  lives as long as the process
    def order(self, epoch: int) -> torch.Tensor:
        """The order of the rows in an epoch."""
        return torch.randperm(
            len(self.packed.ids), generator=torch.Generator().manual_seed(self.job.recipe.seed * 1009 + epoch)
        )

    def rows(self, step: int) -> list[int]:
        """Row numbers of this rank at a step: a pure function of the global row index."""
        first = step * self.share * self.world.size + self.world.rank * self.share
        places = (divmod(index, len(self.packed.ids)) for index in range(first, first + self.share))
        return [int(self.order(epoch)[at]) for epoch, at in places]

    def step(self) -> dict[str, Any]:
        """One step over packed rows."""
        loss = TokenLoss(self.section.optimizer.z_loss)
        found = self.engine.step(_batch(self.packed, self.rows(self.engine.done)), loss)
        return {"loss": found.loss, "grad_norm": found.grad_norm, "lr": found.lr, "tokens": found.units}

    def evaluate(self) -> dict[str, Any]:
        """Mean nats a supervised token of the conversations held out; the ranks share the rows."""
        sums = torch.zeros(2, dtype=torch.float64)
        self.net.eval()
        with torch.no_grad():
            for row in range(self.world.rank, len(self.validation.ids), self.world.size):
                batch = {name: rows.to(self.world.device) for name, rows in _batch(self.validation, [row]).items()}
                sums += torch.tensor([float(token_loss(self.net, batch)), float(supervised(batch))])
        self.net.train()
        sums = sums.to(self.world.device)
        if self.world.size > 1:
            dist.all_reduce(sums)
        return {"validation_loss": float(sums[0] / sums[1])} if sums[1] else {}

    def numbers(self) -> dict[str, Any]:
        """Results for the manifest."""
        last = self.metrics[-1].get("validation_loss")
        return loss_ends(self.metrics) | {
            "validation_loss": None if last is None else round(last, 6),
            "rows": len(self.packed.ids),
            "tokens_learned": sum(row["tokens"] for row in self.metrics),
        }


def _batch(packed: Packed, rows: list[int]) -> Batch:
    return {"ids": packed.ids[rows], "mask": packed.mask[rows], "positions": packed.positions[rows]}


def main() -> None:
    """Entry point."""
    job = parse(__doc__)
    world = processes.start(job.recipe.seed)
    assets = functools.partial(conversations.assets, job.recipe.sft.conversations)
    opened, sources = open_stage(job, world, STAGE, lambda: [command.source(job, "pretrain")], assets)
    if isinstance(opened, Building):
        stage = FineTuning(job, world, opened, *sources)
        stage.run()
        stage.publish(stage.numbers(), stage.counts)
    processes.barrier(world)


if __name__ == "__main__":
    processes.run(main)
