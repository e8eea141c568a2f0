"""The loop of a stage that trains a model: checkpoints, looks, stopping in good order, publishing."""

from __future__ import annotations

import json
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from pipeline import artifact
from pipeline.artifact import Building, Counts, File, Published, Stage
from pipeline.progress import Progress
from pipeline.recipe import Pretrain, Rl, Sft
from tokenizer.bpe import Tokenizer
from training import checkpoint, launch, model
from training.engine import Engine
from training.launch import Job, World

_MEAN_STEPS = 10
# Sections of the recipe that decide what a stage makes.
SECTIONS = {"pretrain": ("model", "pretrain"), "sft": ("sft",), "rl": ("rl",)}


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
        self.net, self.tokenizer = net, tokenizer
        self.section: Pretrain | Sft | Rl = getattr(job.recipe, stage.name)
        self.engine = Engine(net, self.section.optimizer, steps, self.section.precision, world)
        self.checkpoints = checkpoint.Checkpoints(building.storage, building.work, world)
        self.stop = checkpoint.Stop(world)
        self.progress = (
            Progress(building.storage, building.progress_folder, stage.name, "step") if world.first else None
        )
        self.metrics: list[dict[str, Any]] = []
        self.first_step = 0
        self.seconds = 0.0

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

    def run(self) -> None:
        """Learn."""
        state = self.checkpoints.load(self.engine)
        if state is not None:
            self.restore(state)
        self.first_step = self.engine.done
        while self.engine.done < self.steps:
            started = time.perf_counter()
            numbers = self.step()
            seconds = time.perf_counter() - started
            self.seconds += seconds
            done = self.engine.done
            looked = done % self.section.evaluate_every == 0 or done == self.steps
            if looked:
                numbers |= self.look()
            self.metrics.append({"step": done} | numbers)
            if self.progress:
                shown = {name: value for name, value in _finite(numbers).items() if name != "tokens"}
                if "tokens" in numbers:
                    shown["tokens_per_second"] = round(numbers["tokens"] / seconds, 1)
                self.progress(done, self.steps, **shown)
                if looked or done == 1:
                    said = ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if value is not None)
                    print(f"step {done}/{self.steps}: {said}", flush=True)
            asked = self.stop.agreed()
            if asked or (done % self.section.checkpoint_every == 0 and done < self.steps):
                self.checkpoints.save(self.engine, self.state())
            if asked:
                raise checkpoint.interrupted(self.stage.name, done)

    def publish(
        self,
        numbers: dict[str, Any],
        counts: Counts | None = None,
        files: Sequence[File] = (),
        run_numbers: dict[str, Any] | None = None,
    ) -> None:
        """Export the model and publish. All ranks call it, rank 0 writes."""
        others = torch.tensor(0.0 if self.world.first else time.process_time(), device=self.world.device)
        if self.world.size > 1:
            dist.all_reduce(others)
        if not self.world.first:
            return
        made = checkpoint.write_export(self.building, self.net, self.tokenizer)
        made += [write_rows(self.building, "metrics.jsonl", self.metrics), *files]
        numbers |= {"parameters": model.parameters(self.net), "steps": self.steps, "steps_skipped": self.engine.skipped}
        taken = self.metrics[self.first_step :]
        tokens = sum(row.get("tokens", 0) for row in taken)
        spent: dict[str, Any] = {
            "ranks": self.world.size,
            "device": self.world.device.type,
            "resumed_at": self.first_step,
            "step_seconds": round(self.seconds, 3),
            "tokens_per_second": round(tokens / self.seconds, 1) if tokens else None,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # of this rank; Linux counts KiB
        }
        self.building.publish(made, counts, numbers, spent | (run_numbers or {}), float(others))
        print(json.dumps(numbers), flush=True)


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


def write_rows(building: Building, path: str, rows: list[dict[str, Any]]) -> File:
    """Write JSON lines into the artifact in the making; its manifest entry. What is not finite becomes null."""
    text = "".join(json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    building.storage.write(building.file(path), text.encode())
    return artifact.describe(building.storage, building.pointer.folder, path, rows=len(rows))


def open_stage(
    job: Job,
    world: World,
    stage: Stage,
    sources: Callable[[], list[Published]],
    assets: Callable[[], dict[str, str]] = dict,
) -> tuple[Published | Building, list[Published]]:
    """Open a stage on the artifacts it reads; the same on all ranks, though rank 0 alone looks."""

    def opened() -> tuple[Published | Building, list[Published]]:
        found = sources()
        section = {name: job.recipe.section(name) for name in SECTIONS[stage.name]}
        inputs, seed = [source.as_input() for source in found], job.recipe.seed
        return artifact.open_stage(
            job.storage, job.run, stage, section, seed, inputs, assets=assets(), force=job.force
        ), found

    return launch.by_first(world, opened)


def continued(job: Job, source: Published) -> tuple[nn.Module, Tokenizer]:
    """The model that an artifact holds, and its tokenizer."""
    folder = Path(job.storage.local_path(source.folder))
    return model.load(folder), Tokenizer.load(folder)
