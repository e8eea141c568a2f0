"""Stage `pretrain`: token shards to a base model.

    deepspeed --num_gpus 2 training/pretrain.py --recipe recipes/demo.yaml --root .crawl2chat/data
    torchrun --nproc_per_node 2 -- training/pretrain.py --recipe recipes/demo.yaml --root .crawl2chat/data

Killed at any moment and started again it resumes from its last checkpoint and makes the same bytes; asked to stop by
SIGTERM it saves first and exits with 85. The artifact holds the model, the metrics of each step (`metrics.jsonl`) and
continuations of the recipe's prompts at each evaluation (`samples.jsonl`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from evaluation.ngrams import NgramTables, bits_per_byte
from inference import network
from pipeline import lines
from pipeline.artifact import Building, Published
from pipeline.errors import ArtifactError, RecipeError
from pipeline.numbers import ShardNumbers
from tokenizer.bpe import Tokenizer
from tokenizer.chat import PAD
from training.data import loader
from training.engine.engine import MAX_SKIPPED, micro_rows, rows_per_rank
from training.engine.loop import Loop, loss_ends
from training.engine.losses import Batch, TokenLoss, token_loss
from training.engine.optimizer import decay_start
from training.launch import opening, processes
from training.launch.command import TrainingJob, parse
from training.launch.processes import World
from training.launch.stage import opened
from training.samples import SAMPLES

STAGE = opening.PRETRAIN.stage
VALIDATION_WINDOWS = 64  # evaluated during training, so that it costs little; all of the split at the end
SAMPLE_TOKENS = 32  # a sample's length: enough to see whether the model has learned words or sentences
TABLE_TOKENS = 50_000_000  # at most so many are counted for the n-gram tables, whose bigrams then take some hundred MB


@dataclass(frozen=True)
class PretrainingData:
    """Both splits of a shard artifact, and how many bytes of text its validation tokens encode.

    `mixed`: training splits of other artifacts, each with its share of the samples. `sources`: all these artifacts.
    """

    sources: tuple[Published, ...]
    train: loader.Stream
    mixed: tuple[tuple[loader.Stream, float], ...]
    validation: loader.Stream
    validation_tokens: int
    validation_bytes: int

    def training_loader(self, window: int, seed: int) -> loader.Loader:
        """The loader of training samples."""
        if not self.mixed:
            return loader.Loader(self.train, window, seed)
        own = 1 - sum(share for _, share in self.mixed)
        return loader.Mixture([(self.train, own), *self.mixed], window, seed)

    def verify(self) -> None:
        """Raise `ArtifactError` if a file is not what its manifest says."""
        for source in self.sources:
            source.verify()

    def bits_per_byte(self, nats: float) -> float:
        """Bits per byte of text, which tokenizers do not change, from nats per validation token."""
        return bits_per_byte(nats, self.validation_tokens, self.validation_bytes)


def open_data(shards: Published, tokenizer: Tokenizer, mix: Iterable[tuple[Published, float]] = ()) -> PretrainingData:
    """Map the shards into memory. `ArtifactError` if another tokenizer made them, or if there is no validation text."""
    numbers = ShardNumbers.of(shards)
    tokens, size = numbers.validation_tokens, numbers.validation_bytes
    if tokens < 2 or size < 1:
        raise ArtifactError(
            f"{shards.folder} holds no validation text, on which the model is evaluated",
            "raise shard.validation in the recipe",
        )

    def split(source: Published, name: str) -> loader.Stream:
        return loader.open_split(source, name, tokenizer.vocabulary, tokenizer.sha256)

    others = list(mix)
    mixed = tuple((split(other, "train"), share) for other, share in others)
    sources = (shards, *(other for other, _ in others))
    return PretrainingData(sources, split(shards, "train"), mixed, split(shards, "validation"), tokens, size)


def windows(stream: loader.Stream, window: int, limit: int | None) -> Iterator[torch.Tensor]:
    """The first `limit` windows of the stream (None: all), `window` + 1 ids each; the stream's last one is shorter."""
    stop = stream.total - 1
    for n, start in enumerate(range(0, stop, window)):
        if n == limit:
            return
        yield torch.from_numpy(stream.read(start, min(start + window, stop) + 1))


def as_batch(ids: torch.Tensor, end_of_text: int | None) -> Batch:
    """A batch of windows [rows, n]. With `end_of_text`, no document attends to another."""
    batch = {"ids": ids, "mask": torch.ones_like(ids)}
    return batch if end_of_text is None else batch | {"positions": loader.document_positions(ids, end_of_text)}


def validation_loss(
    net: nn.Module, stream: loader.Stream, window: int, world: World, limit: int | None, end_of_text: int | None = None
) -> float:
    """Mean nats per token over the first `limit` windows of the stream (None: all), which the ranks share."""
    own = [ids for n, ids in enumerate(windows(stream, window, limit)) if n % world.size == world.rank]
    vocabulary = int(net.config.vocab_size)  # type: ignore[union-attr, arg-type]
    rows = micro_rows(VALIDATION_WINDOWS, window, vocabulary, world.device.type)
    # Loss and tokens in float64: with millions of tokens a sum in float32 would lose the small losses.
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    net.eval()
    with torch.no_grad():
        for group in _groups_of_one_length(own, rows):
            rows_here = as_batch(torch.stack(group), end_of_text)
            batch = {name: tensor.to(world.device) for name, tensor in rows_here.items()}
            sums[0] += token_loss(net, batch).double()
            sums[1] += batch["ids"][:, 1:].numel()
    net.train()
    if world.size > 1:
        dist.all_reduce(sums)
    return float(sums[0] / sums[1])


def _groups_of_one_length(rows: list[torch.Tensor], limit: int) -> Iterator[list[torch.Tensor]]:
    """Rows in order, in groups of at most `limit` that `torch.stack` accepts: the last window is shorter."""
    group: list[torch.Tensor] = []
    for row in rows:
        if group and (len(group) == limit or len(group[0]) != len(row)):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def continuations(
    net: nn.Module, tokenizer: Tokenizer, prompts: list[str], step: int, world: World
) -> list[dict[str, Any]]:
    """Greedy continuations of the prompts, as rows of `step`, `prompt`, `text`; rank 0's, the other ranks have none."""
    rows = []
    if world.first:
        net.eval()
        for prompt in prompts:
            ids = torch.tensor([tokenizer.encode_prompt(prompt)], device=world.device)
            with torch.no_grad():
                out = net.generate(  # type: ignore[operator]
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=SAMPLE_TOKENS,
                    do_sample=False,
                    eos_token_id=tokenizer.end_of_text,
                    pad_token_id=tokenizer.special(PAD),
                )
            rows.append({"step": step, "prompt": prompt, "text": tokenizer.decode(out[0, ids.shape[1] :].tolist())})
        net.train()
    processes.barrier(world)
    return rows


class Pretraining(Loop):
    """Next-token prediction on windows of the shards, in an order that the seed decides."""

    def __init__(
        self, job: TrainingJob, world: World, building: Building, data: PretrainingData, tokenizer: Tokenizer
    ) -> None:
        # 1. The model; a batch that the ranks cannot share is refused before it is built.
        recipe = job.recipe
        rows_per_rank(recipe.pretrain.batch, world)
        net = network.initial_model(recipe.model, recipe.pretrain.weights, tokenizer, recipe.seed)
        super().__init__(job, world, building, STAGE, net, tokenizer, recipe.pretrain.steps)
        self.recipe, self.data = recipe.pretrain, data
        self.end_of_text = tokenizer.end_of_text if recipe.pretrain.within_documents else None
        self.continue_from = recipe.pretrain.continue_from
        self.checkpoints.keep_until = decay_start(self.steps, self.recipe.optimizer)
        # 2. The data: a pure function of the step, read by a thread while the step before runs.
        self.loader = data.training_loader(recipe.pretrain.window, recipe.seed)
        self.prefetch = loader.Prefetch(self.loader, recipe.pretrain.batch, world.rank, world.size)
        # Hashing ten billion tokens takes half a minute: a thread does it during the first steps, and nothing is
        # published before it is done. One process per machine suffices; a remote root's files are hashed when copied.
        verifies = world.local_rank == 0 and job.storage.local
        self.verification = ThreadPoolExecutor(1).submit(data.verify) if verifies else None
        # 3. What is reported.
        self.samples: list[dict[str, Any]] = []
        self.flops_per_token = network.flops_per_token(net, recipe.pretrain.window)

    def state(self) -> dict[str, Any]:
        """See `Loop`; the loader's fingerprint guards the order of the windows."""
        return super().state() | {
            "loader": self.loader.state(),
            "batch": self.recipe.batch,
            "samples": self.samples,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See `Loop`. Raises an error if the checkpoint is of other shards, or does not fit the recipe's schedule."""
        super().restore(state)
        self.loader.check(state["loader"])
        if state["batch"] != self.recipe.batch:
            raise RecipeError(
                f"pretrain.batch is {self.recipe.batch}, the checkpoint's {state['batch']}: its place in the data fits "
                "no step of this one",
                "take the same batch, or leave out pretrain.continue_from",
            )
        if self.engine.done > self.steps:
            raise RecipeError(
                f"pretrain.steps is {self.steps}, and the checkpoint has taken {self.engine.done}",
                "take more steps, or an older checkpoint",
            )
        self.samples = state["samples"]

    def remedy(self) -> str:
        """See `Loop`; names the checkpoint from which a lower learning rate may help."""
        # Skipped steps leave the weights as they are, so those of the last sound step would break again at any rate:
        # the checkpoint must be at least one step older.
        taken = self.engine.done - MAX_SKIPPED - 1
        folder = self.checkpoints.newest(taken) or (self.continue_from if self.first_step <= taken else None)
        if folder is None:
            return super().remedy()
        return (
            "look for damaged data in these rows, or lower pretrain.optimizer.lr (and muon_lr) and set "
            f"pretrain.continue_from: {folder}"
        )

    def step(self) -> dict[str, Any]:
        """See `Loop`."""
        started = time.perf_counter()
        batch = as_batch(self.prefetch.batch(self.engine.done), self.end_of_text)
        self.data_seconds += time.perf_counter() - started
        if self.verification and self.verification.done():
            self.verification.result()  # raises its error here, at the first step after a damaged shard was found
        metrics = self.engine.step(batch, TokenLoss(self.recipe.optimizer.z_loss))
        return {"loss": metrics.loss, "grad_norm": metrics.grad_norm, "lr": metrics.lr, "tokens": metrics.units}

    def validation_loss(self, limit: int | None) -> float:
        """See the function of this name."""
        stream, window = self.data.validation, self.recipe.window
        return validation_loss(self.net, stream, window, self.world, limit, self.end_of_text)

    def evaluate(self) -> dict[str, Any]:
        """Loss on part of the validation split; continuations of the prompts go into the progress and `samples`."""
        nats = self.validation_loss(VALIDATION_WINDOWS)
        rows = continuations(self.net, self.tokenizer, self.recipe.prompts, self.engine.done, self.world)
        self.samples += rows
        if self.progress:
            self.progress.add_samples(self.engine.done, rows)
            lines.write(self.building.storage, f"{self.building.work}/{SAMPLES}", self.samples)
        return {"validation_loss": nats, "bits_per_byte": self.data.bits_per_byte(nats)}

    def numbers(self) -> dict[str, Any]:
        """Results for the manifest, on the whole validation split, beside those of n-gram tables. All ranks call it."""
        nats = self.validation_loss(None)
        if not self.world.first:
            return {}
        # The tables count training tokens and predict the same validation tokens: yardsticks that a model must beat.
        validation = self.data.validation.read(0, self.data.validation.total)
        counted = self.data.train.read(0, min(self.data.train.total, TABLE_TOKENS))
        tables = NgramTables(counted, self.tokenizer.vocabulary)
        return loss_ends(self.metrics) | {
            "validation_loss": round(nats, 6),
            "bits_per_byte": round(self.data.bits_per_byte(nats), 6),
            "unigram_bits_per_byte": round(self.data.bits_per_byte(tables.unigram_cost(validation)), 6),
            "bigram_bits_per_byte": round(self.data.bits_per_byte(tables.bigram_cost(validation)), 6),
            "bigram_weight": round(tables.weight, 6),
            "tokens_seen": sum(row["tokens"] for row in self.metrics),
        }

    def publish_model(self) -> None:
        """See `Loop.publish`. Waits until the shards are verified."""
        if self.verification:
            self.verification.result()
        numbers = self.numbers()
        files = [lines.write_rows(self.building, SAMPLES, self.samples)] if self.world.first else []
        self.publish(numbers, files=files)


def main() -> None:
    """Entry point."""
    job = parse(__doc__)
    with opened(job, opening.PRETRAIN) as (world, building, sources):
        if isinstance(building, Building):
            shards, tokenizer_source, *others = sources
            tokenizer = Tokenizer.load(tokenizer_source.on_disk())
            mix = zip(others, job.recipe.pretrain.mix.values(), strict=True)
            stage = Pretraining(job, world, building, open_data(shards, tokenizer, mix), tokenizer)
            stage.run()
            stage.publish_model()


if __name__ == "__main__":
    processes.run(main)
