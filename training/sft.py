"""Stage `sft`: fine-tune a base model on conversations into an assistant, with loss on the assistant's tokens only.

    deepspeed --num_gpus 2 training/sft.py --recipe recipes/demo.yaml --root .crawl2chat/data
    torchrun --nproc_per_node 2 -- training/sft.py --recipe recipes/demo.yaml --root .crawl2chat/data

One conversation in fifty, chosen by a hash of its ids, is held out from training: their loss is `validation_loss`.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pipeline.artifact import Building, Counts, Published
from pipeline.errors import InputError
from tokenizer.chat import PAD, Rendered, render
from training.data import conversations
from training.data.packing import Packed, pack
from training.engine.engine import rows_per_rank
from training.engine.loop import Loop, loss_ends
from training.engine.losses import Batch, TokenLoss, supervised, token_loss
from training.launch import opening, processes
from training.launch.command import TrainingJob, parse
from training.launch.processes import World
from training.launch.stage import load_model, opened

STAGE = opening.SFT.stage
VALIDATION_SHARE = 0.02  # of the distinct conversations


def held_out(conversation: Rendered) -> bool:
    """Whether a conversation is of the validation split. By a hash, not by a draw: equal ones belong to one split."""
    draw = hashlib.sha256(np.asarray(conversation.ids, dtype=np.int64).tobytes()).digest()
    return int.from_bytes(draw[:4], "big") < VALIDATION_SHARE * 2**32


class FineTuning(Loop):
    """Cross-entropy on packed conversations, in an order per epoch that the seed decides."""

    def __init__(self, job: TrainingJob, world: World, building: Building, source: Published) -> None:
        section = job.recipe.sft
        self.rank_rows = rows_per_rank(section.batch, world)
        # 1. The base model, and the conversations as ids and loss masks of its tokenizer.
        net, tokenizer = load_model(source)
        loaded = conversations.load(section, job.recipe.assistant.tools, job.recipe.seed)
        rendered = [render(messages, tokenizer) for messages in loaded]
        # 2. Both splits, packed into rows. A training conversation may come several times; of the validation split each
        # counts once, or its loss would be mostly that of the few which are repeated.
        train = [conversation for conversation in rendered if not held_out(conversation)]
        distinct = {tuple(conversation.ids): conversation for conversation in rendered if held_out(conversation)}
        pad = tokenizer.special(PAD)
        self.packed: Packed = pack(train, section.window, pad)
        self.validation: Packed = pack(list(distinct.values()), section.window, pad)
        if not self.packed.kept:
            raise InputError(
                f"none of {len(loaded)} conversations fits a window of {section.window} tokens and has a turn to learn",
                "widen sft.window",
            )
        # 3. The counts of the manifest: all loaded = kept + dropped by reason.
        dropped = self.packed.dropped | {"held_out": len(loaded) - len(train)}
        self.counts = Counts(in_=len(loaded), kept=self.packed.kept, dropped={k: n for k, n in dropped.items() if n})
        steps = math.ceil(section.epochs * len(self.packed.ids) / section.batch)
        super().__init__(job, world, building, STAGE, net, tokenizer, steps)

    @functools.lru_cache(maxsize=2)  # noqa: B019  lives as long as the process
    def order(self, epoch: int) -> torch.Tensor:
        """The order of the rows in an epoch, a permutation [rows]."""
        # 1009 is more than any number of epochs, so that no epoch of one seed has the order of another's.
        generator = torch.Generator().manual_seed(self.job.recipe.seed * 1009 + epoch)
        return torch.randperm(len(self.packed.ids), generator=generator)

    def rows(self, step: int) -> list[int]:
        """Row numbers of this rank at a step: a pure function of the global row index."""
        first = (step * self.world.size + self.world.rank) * self.rank_rows
        places = (divmod(index, len(self.packed.ids)) for index in range(first, first + self.rank_rows))
        return [int(self.order(epoch)[place]) for epoch, place in places]

    def step(self) -> dict[str, Any]:
        """See `Loop`."""
        batch = _batch(self.packed, self.rows(self.engine.done))
        metrics = self.engine.step(batch, TokenLoss(self.section.optimizer.z_loss))
        return {"loss": metrics.loss, "grad_norm": metrics.grad_norm, "lr": metrics.lr, "tokens": metrics.units}

    def evaluate(self) -> dict[str, Any]:
        """Mean nats per supervised token of the validation split; the ranks share the rows."""
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
    with opened(job, opening.SFT) as (world, building, sources):
        if isinstance(building, Building):
            stage = FineTuning(job, world, building, *sources)
            stage.run()
            stage.publish(stage.numbers(), stage.counts)


if __name__ == "__main__":
    processes.run(main)
