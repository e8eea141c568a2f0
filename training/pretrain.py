"""Stage `pretrain`: token shards to a base model.

    deepspeed --num_gpus 2 training/pretrain.py --recipe recipes/demo.yaml --root .crawl2chat/data
    torchrun --nproc_per_node 2 -- training/pretrain.py --recipe recipes/demo.yaml --root .crawl2chat/data

Killed at any moment and started again it goes on from its last checkpoint and makes the same bytes; asked to stop by
SIGTERM it saves first and exits with 85. `metrics.jsonl` and `samples.jsonl` of the artifact hold what it went through.
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
from pipeline import artifact, command, lines
from pipeline.artifact import Building, Published, Stage
from pipeline.errors import ArtifactError, RecipeError
from pipeline.numbers import ShardNumbers
from tokenizer.bpe import Tokenizer
from tokenizer.chat import PAD
from training.data import loader
from training.engine import checkpoint
from training.engine.engine import MAX_SKIPPED, micro_rows, rows_a_rank
from training.engine.loop import Loop, loss_ends
from training.engine.losses import TokenLoss, token_loss
from training.engine.optimizer import fall_begins
from training.launch import processes
from training.launch.command import TrainingJob, parse
from training.launch.processes import World
from training.launch.stage import open_stage
from training.samples import SAMPLES

STAGE = Stage("pretrain", 2, libraries=("torch", "transformers", "deepspeed"))
VALIDATION_WINDOWS = 64  # looked at while training; all of them at the end
SAMPLE_TOKENS = 32  # a sample's length, enough to see whether it says words or sentences
TABLE_TOKENS = 50_000_000  # the tables count no more than these: their bigrams stay within some hundred MB


@dataclass(frozen=True)
class Corpus:
    """Both splits of a shard artifact, and how many bytes of text a validation token stands for.

    `others`: training splits mixed in, each with its share of the samples. `sources`: all artifacts they are from.
    """

    sources: tuple[Published, ...]
    train: loader.Stream
    others: tuple[tuple[loader.Stream, float], ...]
    validation: loader.Stream
    validation_tokens: int
    validation_bytes: int

    def samples(self, window: int, seed: int) -> loader.Loader:
        """What the model learns from."""
        if not self.others:
            return loader.Loader(self.train, window, seed)
        own = 1 - sum(share for _, share in self.others)
        return loader.Mixture([(self.train, own), *self.others], window, seed)

    def verify(self) -> None:
        """Raise `ArtifactError` where a file is not what its manifest says."""
        for source in self.sources:
            source.verify()

    def bits_per_byte(self, cost: float) -> float:
        """From nats a validation token."""
        return bits_per_byte(cost, self.validation_tokens, self.validation_bytes)


def inputs(job: TrainingJob) -> list[Published]:
    """The shard artifact to read (`--input`, or the run's), the tokenizer that made it, and the shards to mix in."""
    shards = command.source(job, "shard")
    for source in shards.content.inputs:
        if source.stage == "tokenizer":
            others = [artifact.read(job.storage, folder) for folder in job.recipe.pretrain.mix]
            return [shards, artifact.read(job.storage, source.location), *others]
    raise ArtifactError(f"{shards.folder} does not say which tokenizer made it", "run the stage shard again")


def assets(job: TrainingJob) -> dict[str, str]:
    """What a run begins with, where it is not nothing; a checkpoint of ours by what its commit file says of it."""
    section = job.recipe.pretrain
    found = network.assets(section.weights)
    if section.continue_from:
        found["continue_from"] = artifact.digest(checkpoint.read_commit(job.storage, section.continue_from))
    return found


def open_corpus(shards: Published, tokenizer: Tokenizer, mix: Iterable[tuple[Published, float]] = ()) -> Corpus:
    """Map the shards; refused where they are not this tokenizer's, or where nothing is held out."""
    numbers = ShardNumbers.of(shards)
    tokens, size = numbers.validation_tokens, numbers.validation_bytes
    if tokens < 2 or size < 1:
        raise ArtifactError(f"{shards.folder} holds no validation text", "raise shard.validation in the recipe")

    def opened(source: Published, split: str) -> loader.Stream:
        return loader.open_split(source, split, tokenizer.vocabulary, tokenizer.sha256)

    mixed = list(mix)
    others = tuple((opened(other, "train"), share) for other, share in mixed)
    sources = (shards, *(other for other, _ in mixed))
    return Corpus(sources, opened(shards, "train"), others, opened(shards, "validation"), tokens, size)


def windows(stream: loader.Stream, window: int, most: int | None) -> Iterator[torch.Tensor]:
    """The stream's windows in order, `window` + 1 ids each, the last one shorter; at most `most` of them."""
    stop = stream.total - 1
    for n, start in enumerate(range(0, stop, window)):
        if n == most:
            return
        yield torch.from_numpy(stream.read(start, min(start + window, stop) + 1))


def rows_of(ids: torch.Tensor, end_of_text: int | None) -> dict[str, torch.Tensor]:
    """A batch of windows [rows, n]; with `end_of_text`, documents do not see each other."""
    rows = {"ids": ids, "mask": torch.ones_like(ids)}
    return rows if end_of_text is None else rows | {"positions": loader.document_positions(ids, end_of_text)}


def validation_loss(
    net: nn.Module, stream: loader.Stream, window: int, world: World, most: int | None, end_of_text: int | None = None
) -> float:
    """Mean nats a token over `most` windows of the stream (all with None), the ranks sharing them."""
    rows = [ids for n, ids in enumerate(windows(stream, window, most)) if n % world.size == world.rank]
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    together = micro_rows(VALIDATION_WINDOWS, window, int(net.config.vocab_size), world.device.type)  # type: ignore[union-attr, arg-type]
    net.eval()
    with torch.no_grad():
        for same in _of_one_length(rows, together):
            rows_here = rows_of(torch.stack(same), end_of_text)
            sums[0] += token_loss(net, {name: one.to(world.device) for name, one in rows_here.items()}).double()
            sums[1] += rows_here["ids"][:, 1:].numel()
    net.train()
    if world.size > 1:
        dist.all_reduce(sums)
    return float(sums[0] / sums[1])


def _of_one_length(rows: list[torch.Tensor], most: int) -> Iterator[list[torch.Tensor]]:
    group: list[torch.Tensor] = []
    for row in rows:
        if group and (len(group) == most or len(group[0]) != len(row)):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def samples(net: nn.Module, tokenizer: Tokenizer, prompts: list[str], step: int, world: World) -> list[dict[str, Any]]:
    """Greedy continuations of the prompts, by rank 0; the others wait."""
    made = []
    if world.first:
        net.eval()
        for text in prompts:
            ids = torch.tensor([tokenizer.encode_prompt(text)], device=world.device)
            with torch.no_grad():
                out = net.generate(  # type: ignore[operator]
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=SAMPLE_TOKENS,
                    do_sample=False,
                    eos_token_id=tokenizer.end_of_text,
                    pad_token_id=tokenizer.special(PAD),
                )
            made.append({"step": step, "prompt": text, "text": tokenizer.decode(out[0, ids.shape[1] :].tolist())})
        net.train()
    processes.barrier(world)
    return made


class Pretraining(Loop):
    """Windows of the shards, in an order that the seed decides, and what the model says on the way."""

    def __init__(
        self, job: TrainingJob, world: World, building: Building, corpus: Corpus, tokenizer: Tokenizer
    ) -> None:
        recipe = job.recipe
        rows_a_rank(recipe.pretrain.batch, world)
        net = network.initial_model(recipe.model, recipe.pretrain.weights, tokenizer, recipe.seed)
        super().__init__(job, world, building, STAGE, net, tokenizer, recipe.pretrain.steps)
        self.recipe, self.corpus = recipe.pretrain, corpus
        self.end_of_text = tokenizer.end_of_text if recipe.pretrain.within_documents else None
        self.start = recipe.pretrain.continue_from
        self.checkpoints.before = fall_begins(self.steps, self.recipe.optimizer)
        self.loader = corpus.samples(recipe.pretrain.window, recipe.seed)
        self.prefetch = loader.Prefetch(self.loader, recipe.pretrain.batch, world.rank, world.size)
        # Hashing ten billion tokens takes half a minute: the model learns meanwhile, and is not published before.
        check = world.local_rank == 0 and job.storage.local
        self.verified = ThreadPoolExecutor(1).submit(corpus.verify) if check else None
        self.samples: list[dict[str, Any]] = []
        self.flops = network.flops_per_token(net, recipe.pretrain.window)

    def state(self) -> dict[str, Any]:
        """See `Loop`; the loader's fingerprint guards the order of the windows."""
        return super().state() | {
            "loader": self.loader.state(),
            "batch": self.recipe.batch,
            "samples": self.samples,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See `Loop`. Refused where the shards are others than those of the checkpoint."""
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
        """See `Loop`. Weights that a step before the broken ones made can become others by a lower rate."""
        before = self.engine.done - MAX_SKIPPED - 1
        folder = self.checkpoints.last(before) or (self.start if self.first_step <= before else None)
        if folder is None:
            return super().remedy()
        return (
            "look for damaged data in these rows, or lower pretrain.optimizer.lr (and muon_lr) and set "
            f"pretrain.continue_from: {folder}"
        )

    def step(self) -> dict[str, Any]:
        """One step over windows."""
        started = time.perf_counter()
        rows = rows_of(self.prefetch.batch(self.engine.done), self.end_of_text)
        self.waited += time.perf_counter() - started
        if self.verified and self.verified.done():
            self.verified.result()
        found = self.engine.step(rows, TokenLoss(self.recipe.optimizer.z_loss))
        return {"loss": found.loss, "grad_norm": found.grad_norm, "lr": found.lr, "tokens": found.units}

    def validation_loss(self, most: int | None) -> float:
        """See the function of this name."""
        stream, window = self.corpus.validation, self.recipe.window
        return validation_loss(self.net, stream, window, self.world, most, self.end_of_text)

    def evaluate(self) -> dict[str, Any]:
        """Loss on part of what is held out, and samples."""
        cost = self.validation_loss(VALIDATION_WINDOWS)
        said = samples(self.net, self.tokenizer, self.recipe.prompts, self.engine.done, self.world)
        self.samples += said
        if self.progress:
            self.progress.say(self.engine.done, said)
            lines.write(self.building.storage, f"{self.building.work}/{SAMPLES}", self.samples)
        return {"validation_loss": cost, "bits_per_byte": self.corpus.bits_per_byte(cost)}

    def numbers(self) -> dict[str, Any]:
        """Results for the manifest: the model on all that is held out, beside the tables. All ranks call it."""
        cost = self.validation_loss(None)
        if not self.world.first:
            return {}
        held = self.corpus.validation.read(0, self.corpus.validation.total)
        learned = self.corpus.train.read(0, min(self.corpus.train.total, TABLE_TOKENS))
        tables = NgramTables(learned, self.tokenizer.vocabulary)
        return loss_ends(self.metrics) | {
            "validation_loss": round(cost, 6),
            "bits_per_byte": round(self.corpus.bits_per_byte(cost), 6),
            "unigram_bits_per_byte": round(self.corpus.bits_per_byte(tables.unigram_cost(held)), 6),
            "bigram_bits_per_byte": round(self.corpus.bits_per_byte(tables.bigram_cost(held)), 6),
            "bigram_weight": round(tables.weight, 6),
            "tokens_seen": sum(row["tokens"] for row in self.metrics),
        }

    def publish_model(self) -> None:
        """See `Loop.publish`. Not before the shards proved to be what their manifest says."""
        if self.verified:
            self.verified.result()
        numbers = self.numbers()
        files = [lines.write_rows(self.building, SAMPLES, self.samples)] if self.world.first else []
        self.publish(numbers, files=files)


def main() -> None:
    """Entry point."""
    job = parse(__doc__)
    world = processes.start(job.recipe.seed)
    opened, sources = open_stage(job, world, STAGE, lambda: inputs(job), lambda: assets(job))
    if isinstance(opened, Building):
        shards, made_by, *others = sources
        tokenizer = Tokenizer.load(made_by.on_disk())
        mix = zip(others, job.recipe.pretrain.mix.values(), strict=True)
        stage = Pretraining(job, world, opened, open_corpus(shards, tokenizer, mix), tokenizer)
        stage.run()
        stage.publish_model()
    processes.barrier(world)


if __name__ == "__main__":
    processes.run(main)
