"""The loop of a stage that trains a model: checkpoints, looks, stopping in good order, publishing."""

from __future__ import annotations

import json
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from pipeline import artifact
from pipeline.artifact import Building, Counts, File, Published, Stage
from pipeline.errors import MachineError, StageError
from pipeline.recipe import Pretrain, Rl, Sft
from pipeline.storage import Storage
from tokenizer.bpe import Tokenizer
from training import checkpoint, launch, model
from training.board import Board
from training.engine import Engine
from training.launch import Job, World
from training.watchdog import Watchdog, stragglers

_MEAN_STEPS = 10
# Sections of the recipe that decide what a stage makes.
SECTIONS = {
    "pretrain": ("model", "pretrain"),
    "sft": ("sft",),
    "rl": ("rl",),
    "evaluation": ("evaluation",),
    "memorization": ("memorization",),
}


def source_model(job: Job, stage: str) -> Published:
    """The model that `stage` of this run published with this recipe, or the artifact that `--input` names."""
    if job.input:
        return artifact.read(job.storage, job.input)
    built = {name: job.recipe.section(name) for name in SECTIONS[stage]}
    return artifact.of_run(job.storage, job.run, stage, built)


class Loop(ABC):
    """From the last checkpoint, or from `net` with optimizer and schedule afresh, to the last step."""

    def __init__(
        self, job: Job, world: World, building: Building, stage: Stage, net: nn.Module, tokenizer: Tokenizer, steps: int
    ) -> None:
        self.job, self.world, self.building, self.stage, self.steps = job, world, building, stage, steps
        self.section: Pretrain | Sft | Rl = getattr(job.recipe, stage.name)
        self.engine = Engine(net, self.section.optimizer, steps, self.section.precision, world, job.shape)
        self.net, self.tokenizer = self.engine.plain, tokenizer  # to look at and to sample from, after `engine.gather`
        self.checkpoints = checkpoint.Checkpoints(
            building.storage, building.work, world, self.section.keep_checkpoints, tokenizer
        )
        self.stop = checkpoint.Stop(world)
        self.progress = Board(building.storage, building.progress_folder, stage.name, "step") if world.first else None
        self.metrics: list[dict[str, Any]] = []
        self.first_step = 0
        self.seconds = self.waited = 0.0  # in steps; of these, for data
        self.flops: float | None = None  # a token, where a stage learns from all it computes
        self.peak = model.peak_flops(world.device)
        self.start: str | None = None  # a checkpoint of another fingerprint to begin with

    @abstractmethod
    def step(self) -> dict[str, Any]:
        """Take one optimizer step; its numbers. All but `tokens` are shown, and `tokens` as a speed."""

    def look(self) -> dict[str, Any]:
        """Measure the model between steps; all ranks call it."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside model, optimizer and step: plain data."""
        return {"metrics": self.metrics}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.metrics = state["metrics"]

    def remedy(self) -> str:
        """What helps where steps in a row had no finite gradient."""
        return (
            f"look for damaged data in these rows, or lower {self.stage.name}.optimizer.lr (and muon_lr), with which "
            "the stage begins anew"
        )

    def run(self) -> None:
        """Learn, with errors that say what to do."""
        try:
            with Watchdog(self.world, self.job.step_timeout) as watchdog:
                self._learn(watchdog)
        except StageError as error:
            if self.engine.broken is None:
                raise
            name = f"{self.building.work}/broken/step-{self.engine.done:08d}-rank-{self.world.rank:05d}.pt"
            checkpoint.write_tensors(self.building.storage, name, dict(self.engine.broken))
            what = f"{error.what}; the rows of rank {self.world.rank} are in {self.building.storage.path(name)}"
            raise StageError(what, f"unchanged it ends at the same step: {self.remedy()}") from error
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise MachineError(
                    f"step {self.engine.done + 1} needs more memory than {self.world.device} has: {error}",
                    "start again with a smaller --micro-batch, a higher --zero-stage or --offload: it goes on from its "
                    "last checkpoint",
                ) from error
            if isinstance(error, RuntimeError) and (gone := launch.lost(self.world, error)):
                raise gone from error
            raise

    def _learn(self, watchdog: Watchdog) -> None:
        state = self.checkpoints.load(self.engine, self.start)
        if state is not None:
            self.restore(state)
        self.first_step = self.engine.done
        while self.engine.done < self.steps:
            watchdog.beat(self.engine.done + 1)
            started, waited = time.perf_counter(), self.waited
            numbers = self.step()
            seconds = time.perf_counter() - started
            self.seconds, waited = self.seconds + seconds, self.waited - waited
            done = self.engine.done
            looked = done % self.section.evaluate_every == 0 or done == self.steps
            if looked:
                watchdog.beat(done)
                laps = launch.gather(self.world, self.engine.laps.taken())
                if self.world.first and self.world.size > 1:
                    for told in stragglers(self.world, laps):
                        print(told, flush=True)
                self.engine.gather()
                numbers |= self.look()
            self.metrics.append({"step": done} | numbers)
            if self.progress:
                shown = {name: value for name, value in _finite(numbers).items() if name != "tokens"}
                speed = self._speed(numbers.get("tokens", 0), seconds, waited)
                self.progress(done, self.steps, **shown, **speed)
                shown |= {name: value for name, value in speed.items() if name in ("tokens_per_second", "mfu")}
                if looked or done == 1:
                    said = ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if value is not None)
                    print(f"step {done}/{self.steps}: {said}", flush=True)
            asked = self.stop.agreed()
            due = done % self.section.checkpoint_every == 0 and not self.engine.in_a_row  # those from before must stay
            if asked or done == self.steps or due:
                watchdog.beat(done)
                self.checkpoints.save(self.engine, self.state())
            if asked:
                raise checkpoint.interrupted(self.stage.name, done)

    def _speed(self, tokens: int, seconds: float, waited: float) -> dict[str, float]:
        """What steps cost: for the progress, since figures that differ from run to run have no place in an artifact."""
        found: dict[str, float] = {"step_seconds": round(seconds, 4), "data_wait": round(waited, 4)}
        found["peak_bytes"] = _peak_bytes(self.world)  # of this rank
        if tokens:
            found["tokens_per_second"] = round(tokens / seconds, 1)
            if self.flops:
                each = self.flops * tokens / seconds / self.world.size
                found["tflops"] = round(each / 1e12, 6)  # a rank
                if self.peak:
                    found["mfu"] = round(each / self.peak, 4)
        return found

    def publish(self, numbers: dict[str, Any], counts: Counts | None = None, files: Sequence[File] = ()) -> None:
        """Export the model and publish. All ranks call it, rank 0 writes."""
        others = torch.tensor(0.0 if self.world.first else time.process_time(), device=self.world.device)
        if self.world.size > 1:
            dist.all_reduce(others)
        self.engine.gather()
        if not self.world.first:
            return
        made = checkpoint.write_export(
            self.building.storage, self.building.pointer.folder, self.building.work, self.net, self.tokenizer
        )
        made += [write_rows(self.building, "metrics.jsonl", self.metrics), *files]
        numbers |= {"parameters": model.parameters(self.net), "steps": self.steps, "steps_skipped": self.engine.skipped}
        taken = self.metrics[self.first_step :]
        tokens = sum(row.get("tokens", 0) for row in taken)
        spent: dict[str, Any] = {
            "ranks": self.world.size,
            "device": self.world.device.type,
            "resumed_at": self.first_step,
            "zero_stage": self.job.shape.zero_stage,
        } | self._speed(tokens, self.seconds, self.waited)
        self.building.publish(made, counts, numbers, spent, float(others))
        print(json.dumps(numbers), flush=True)


def _peak_bytes(world: World) -> int:
    """The most memory this rank has used: the GPU's, or without one the process's."""
    if world.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(world.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def mean_loss(metrics: Sequence[dict[str, Any]]) -> float | None:
    """Mean of the steps' losses, those that are finite."""
    losses = [row["loss"] for row in metrics if np.isfinite(row["loss"])]
    return round(sum(losses) / len(losses), 6) if losses else None


def loss_ends(metrics: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """`loss_first` and `loss_last`: the mean of the first and of the last ten steps."""
    return {"loss_first": mean_loss(metrics[:_MEAN_STEPS]), "loss_last": mean_loss(metrics[-_MEAN_STEPS:])}


def _finite(numbers: dict[str, Any]) -> dict[str, Any]:
    """What is not finite becomes null: JSON knows no infinity, and a skipped step has no loss to show."""
    return {k: v if not isinstance(v, float) or np.isfinite(v) else None for k, v in numbers.items()}


def write_lines(storage: Storage, name: str, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines. What is not finite becomes null."""
    text = "".join(json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    storage.write(name, text.encode())


def write_rows(building: Building, path: str, rows: list[dict[str, Any]]) -> File:
    """Write JSON lines into the artifact in the making; its manifest entry."""
    write_lines(building.storage, building.file(path), rows)
    return artifact.describe(building.storage, building.pointer.folder, path, rows=len(rows))


def open_stage(
    job: Job,
    world: World,
    stage: Stage,
    sources: Callable[[], list[Published]],
    assets: Callable[[], dict[str, str]] = dict,
) -> tuple[Published | Building, list[Published]]:
    """As `opened`, on the artifacts it reads; the same on all ranks, though rank 0 alone looks."""

    def look() -> tuple[Published | Building, list[Published]]:
        found = sources()
        return opened(job, stage, found, assets()), found

    return launch.by_first(world, look)


def opened(
    job: Job, stage: Stage, sources: Sequence[Published], assets: dict[str, str], name: str | None = None
) -> Published | Building:
    """What a stage made of these artifacts with its sections of the recipe, or the artifact in the making.

    `name`: of its pointer in the run, where that is not the stage's.
    """
    section = {name: job.recipe.section(name) for name in SECTIONS[stage.name]}
    inputs = [source.as_input() for source in sources]
    return artifact.open_stage(
        job.storage, job.run, stage, section, job.recipe.seed, inputs, name=name, assets=assets, force=job.force
    )


def publish_results(building: Building, results: dict[str, Any]) -> Published:
    """Publish `results.json`, whose `numbers` are the manifest's too."""
    building.storage.write(building.file("results.json"), json.dumps(results, ensure_ascii=False, indent=1).encode())
    files = [artifact.describe(building.storage, building.pointer.folder, "results.json", 1)]
    return building.publish(files, numbers=results["numbers"])


def continued(job: Job, source: Published) -> tuple[nn.Module, Tokenizer]:
    """The model that an artifact holds, and its tokenizer."""
    folder = source.on_disk()
    return model.load(folder), Tokenizer.load(folder)
