"""Stage `pretrain`: token shards to a base model.

    deepspeed --num_gpus 2 training/pretrain.py --recipe recipes/demo.yaml --root .crawl2chat/data
    torchrun --nproc_per_node 2 training/pretrain.py --recipe recipes/demo.yaml --root .crawl2chat/data

Killed at any moment and started again it goes on from its last checkpoint and makes the same bytes; asked to stop by
SIGTERM it saves first and exits with 85. `metrics.jsonl` and `samples.jsonl` of the artifact hold what it went through.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from pipeline import artifact, errors
from pipeline.artifact import Building, Published, Stage
from pipeline.errors import ArtifactError
from pipeline.progress import Progress
from tokenizer.bpe import Tokenizer
from tokenizer.chat import END_OF_TEXT, PAD
from training import checkpoint, launch, loader, model
from training.engine import Engine, micro_rows, rows_a_rank, token_loss
from training.launch import Job, World
from training.loop import write_rows
from training.ngrams import Tables, bits_per_byte

STAGE = Stage("pretrain", 1, libraries=("torch", "transformers", "deepspeed"))
VALIDATION_WINDOWS = 64  # looked at while training; all of them at the end
SAMPLE_TOKENS = 32  # a sample's length, enough to see whether it says words or sentences
TABLE_TOKENS = 50_000_000  # the tables count no more than these: their bigrams stay within some hundred MB
_MEAN_STEPS = 10  # steps that `loss_first` and `loss_last` average over


@dataclass(frozen=True)
class Corpus:
    """Both splits of a shard artifact, and how many bytes of text a validation token stands for."""

    train: loader.Stream
    validation: loader.Stream
    validation_tokens: int
    validation_bytes: int

    def bits_per_byte(self, cost: float) -> float:
        """From nats a validation token."""
        return bits_per_byte(cost, self.validation_tokens, self.validation_bytes)


def inputs(job: Job) -> tuple[Published, Published]:
    """The shard artifact to read (`--input`, or the run's) and the tokenizer that made it."""
    if job.input:
        shards = artifact.read(job.storage, job.input)
    else:
        shards = artifact.of_run(job.storage, job.run, "shard", job.recipe.section("shard"))
    for source in shards.content.inputs:
        if source.stage == "tokenizer":
            return shards, artifact.read(job.storage, source.location)
    raise ArtifactError(f"{shards.folder} does not say which tokenizer made it", "run the stage shard again")


def open_corpus(shards: Published, vocabulary: int) -> Corpus:
    """Map the shards; refused where they are not of this vocabulary, or where nothing is held out."""
    numbers = shards.content.numbers
    tokens, size = int(numbers["validation_tokens"]), int(numbers["validation_bytes"])
    if tokens < 2 or size < 1:
        raise ArtifactError(f"{shards.folder} holds no validation text", "raise shard.validation in the recipe")
    train = loader.open_split(shards, "train", vocabulary)
    return Corpus(train, loader.open_split(shards, "validation", vocabulary), tokens, size)


def windows(stream: loader.Stream, window: int, most: int | None) -> Iterator[torch.Tensor]:
    """The stream's windows in order, `window` + 1 ids each, the last one shorter; at most `most` of them."""
    stop = stream.total - 1
    for n, start in enumerate(range(0, stop, window)):
        if n == most:
            return
        yield torch.from_numpy(stream.read(start, min(start + window, stop) + 1))


def validation_loss(net: nn.Module, stream: loader.Stream, window: int, world: World, most: int | None) -> float:
    """Mean nats a token over `most` windows of the stream (all with None), the ranks sharing them."""
    rows = [ids for n, ids in enumerate(windows(stream, window, most)) if n % world.size == world.rank]
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    together = micro_rows(VALIDATION_WINDOWS, window, int(net.config.vocab_size), world.device.type)  # type: ignore[union-attr, arg-type]
    net.eval()
    with torch.no_grad():
        for same in _of_one_length(rows, together):
            ids = torch.stack(same).to(world.device)
            sums[0] += token_loss(net, {"ids": ids, "mask": torch.ones_like(ids)}).double()
            sums[1] += ids[:, 1:].numel()
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
            ids = torch.tensor([tokenizer.encode(text) or [tokenizer.end_of_text]], device=world.device)
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
    launch.wait(world)
    return made


class Pretraining:
    """The loop, and what it remembers from step to step."""

    def __init__(self, job: Job, world: World, building: Building, corpus: Corpus, tokenizer: Tokenizer) -> None:
        recipe = job.recipe
        self.section, self.world, self.building = recipe.pretrain, world, building
        self.corpus, self.tokenizer = corpus, tokenizer
        self.batch, self.window, self.steps = self.section.batch, self.section.window, self.section.steps
        rows_a_rank(self.batch, world)
        self.loader = loader.Loader(corpus.train, self.window, recipe.seed)
        net = model.build(
            recipe.model,
            tokenizer.vocabulary,
            tokenizer.special(END_OF_TEXT),
            tokenizer.special(PAD),
            recipe.seed,
        )
        self.parameters = model.parameters(net)
        self.engine = Engine(net, self.section.optimizer, self.steps, self.section.precision, world)
        self.checkpoints = checkpoint.Checkpoints(building.storage, building.work, world)
        self.stop = checkpoint.Stop(world)
        self.progress: Progress | None = None
        if world.first:
            self.progress = Progress(building.storage, building.progress_folder, STAGE.name, "step")
        self.metrics: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self.seconds = self.waited = 0.0
        self.first_step = 0

    def run(self) -> None:
        """From the last checkpoint, or from nothing, to the last step."""
        position = self.checkpoints.load(self.engine)
        if position is not None:
            self.loader.check(position["loader"])
            self.metrics, self.samples = position["metrics"], position["samples"]
        self.first_step = self.engine.done
        while self.engine.done < self.steps:
            self._step()
            done = self.engine.done
            if done % self.section.evaluate_every == 0 or done == self.steps:
                self._look()
            asked = self.stop.agreed()
            if asked or (done % self.section.checkpoint_every == 0 and done < self.steps):
                self._save()
            if asked:
                raise checkpoint.interrupted(STAGE.name, done)

    def _step(self) -> None:
        started = time.perf_counter()
        rows = self.loader.batch(self.engine.done, self.batch, self.world.rank, self.world.size)
        waited = time.perf_counter() - started
        found = self.engine.step(rows, token_loss)
        seconds = time.perf_counter() - started
        self.seconds, self.waited = self.seconds + seconds, self.waited + waited
        numbers = {"loss": found.loss, "grad_norm": found.grad_norm, "lr": found.lr}
        self.metrics.append({"step": self.engine.done, **numbers})
        if self.progress:
            speed = {"tokens_per_second": round(found.tokens / seconds, 1), "data_wait": round(waited, 6)}
            self.progress(self.engine.done, self.steps, **_finite(numbers), **speed)

    def _look(self) -> None:
        done, net = self.engine.done, self.engine.model
        cost = validation_loss(net, self.corpus.validation, self.window, self.world, VALIDATION_WINDOWS)
        bits = self.corpus.bits_per_byte(cost)
        self.metrics[-1] |= {"validation_loss": cost, "bits_per_byte": bits}
        self.samples += samples(net, self.tokenizer, list(self.section.prompts), done, self.world)
        if self.progress:
            self.progress(done, self.steps, validation_loss=round(cost, 6), bits_per_byte=round(bits, 6))
            loss = self.metrics[-1]["loss"]
            print(f"step {done}/{self.steps}: loss {loss:.3f}, held out {cost:.3f}, {bits:.3f} bits a byte", flush=True)

    def _save(self) -> None:
        position = {"loader": self.loader.state(), "metrics": self.metrics, "samples": self.samples}
        self.checkpoints.save(self.engine, position)

    def publish(self) -> None:
        """Measure the finished model on all that is held out, beside the tables, and publish it. Rank 0 writes."""
        started = time.perf_counter()
        cost = validation_loss(self.engine.model, self.corpus.validation, self.window, self.world, None)
        if not self.world.first:
            return
        held = self.corpus.validation.read(0, self.corpus.validation.total)
        tables = Tables(
            self.corpus.train.read(0, min(self.corpus.train.total, TABLE_TOKENS)), self.tokenizer.vocabulary
        )
        losses = [row["loss"] for row in self.metrics]
        numbers = {
            "parameters": self.parameters,
            "loss_first": _mean(losses[:_MEAN_STEPS]),
            "loss_last": _mean(losses[-_MEAN_STEPS:]),
            "validation_loss": round(cost, 6),
            "bits_per_byte": round(self.corpus.bits_per_byte(cost), 6),
            "unigram_bits_per_byte": round(self.corpus.bits_per_byte(tables.unigram_cost(held)), 6),
            "bigram_bits_per_byte": round(self.corpus.bits_per_byte(tables.bigram_cost(held)), 6),
            "bigram_weight": round(tables.weight, 6),
            "tokens_seen": self.steps * self.batch * self.window,
            "steps_skipped": self.engine.skipped,
        }
        files = checkpoint.write_export(self.building, self.engine.model, self.tokenizer, self.window)
        files.append(write_rows(self.building, "metrics.jsonl", self.metrics))
        files.append(write_rows(self.building, "samples.jsonl", self.samples))
        taken = self.steps - self.first_step
        speed = round(taken * self.batch * self.window / self.seconds, 1) if taken else 0.0
        run_numbers = {
            "tokens_per_second": speed,
            "data_wait_share": round(self.waited / self.seconds, 6) if taken else 0.0,
            "ranks": self.world.size,
            "device": self.world.device.type,
            "resumed_at": self.first_step,
            "final_seconds": round(time.perf_counter() - started, 3),
        }
        self.building.publish(files, numbers=numbers, run_numbers=run_numbers)
        print(json.dumps(numbers), flush=True)


def _finite(numbers: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity; a skipped step has none to show."""
    return {k: v if not isinstance(v, float) or np.isfinite(v) else None for k, v in numbers.items()}


def _mean(values: list[float]) -> float | None:
    finite = [value for value in values if np.isfinite(value)]
    return round(sum(finite) / len(finite), 6) if finite else None


def main() -> None:
    """Entry point."""
    job = launch.parse("pretrain.py")
    world = launch.start(job.recipe.seed)

    def open_stage() -> tuple[Published | Building, Published, Published]:
        shards, made_by = inputs(job)
        section = {name: job.recipe.section(name) for name in ("model", "pretrain")}
        sources = [shards.as_input(), made_by.as_input()]
        rows_a_rank(job.recipe.pretrain.batch, world)
        opened = artifact.open_stage(job.storage, job.run, STAGE, section, job.recipe.seed, sources, force=job.force)
        return opened, shards, made_by

    opened, shards, made_by = launch.by_first(world, open_stage)
    if isinstance(opened, Building):
        tokenizer = Tokenizer.load(Path(job.storage.local_path(made_by.folder)))
        stage = Pretraining(job, world, opened, open_corpus(shards, tokenizer.vocabulary), tokenizer)
        stage.run()
        stage.publish()
    launch.wait(world)
    launch.stop()


if __name__ == "__main__":
    errors.run(main)
