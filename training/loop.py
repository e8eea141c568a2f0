"""The loop of a stage that continues a model: checkpoints, looks, stopping in good order, publishing."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pipeline import artifact
from pipeline.artifact import Building, Counts, File, Published, Stage
from pipeline.progress import Progress
from pipeline.recipe import Rl, Sft
from tokenizer.bpe import Tokenizer
from training import checkpoint, launch, model
from training.engine import Engine
from training.launch import Job, World

# Sections of the recipe that decide what a stage makes.
SECTIONS = {"pretrain": ("model", "pretrain"), "sft": ("sft",), "rl": ("rl",)}


def source_model(job: Job, stage: str) -> Published:
    """The model that `stage` of this run published with this recipe, or the artifact that `--input` names."""
    if job.input:
        return artifact.read(job.storage, job.input)
    built = {name: job.recipe.section(name) for name in SECTIONS[stage]}
    return artifact.of_run(job.storage, job.run, stage, built)


class Loop(ABC):
    """From the last checkpoint, or from the source model with optimizer and schedule afresh, to the last step."""

    def __init__(self, job: Job, world: World, building: Building, source: Published, stage: Stage, steps: int) -> None:
        self.job, self.world, self.building, self.stage, self.steps = job, world, building, stage, steps
        self.section: Sft | Rl = getattr(job.recipe, stage.name)
        folder = Path(job.storage.local_path(source.folder))
        self.tokenizer = Tokenizer.load(folder)
        self.net: nn.Module = model.load(folder)
        self.engine = Engine(self.net, self.section.optimizer, steps, self.section.precision, world)
        self.checkpoints = checkpoint.Checkpoints(building.storage, building.work, world)
        self.stop = checkpoint.Stop(world)
        self.progress = (
            Progress(building.storage, building.progress_folder, stage.name, "step") if world.first else None
        )
        self.metrics: list[dict[str, Any]] = []
        self.seconds = 0.0

    @abstractmethod
    def step(self) -> dict[str, Any]:
        """Take one optimizer step; its numbers."""

    def look(self) -> dict[str, Any]:
        """Measure the model between steps; all ranks call it."""
        return {}

    def run(self) -> None:
        """Learn."""
        position = self.checkpoints.load(self.engine)
        if position is not None:
            self.metrics = position["metrics"]
        while self.engine.done < self.steps:
            started = time.perf_counter()
            numbers = self.step()
            self.seconds += time.perf_counter() - started
            done = self.engine.done
            if done % self.section.evaluate_every == 0 or done == self.steps:
                numbers |= self.look()
            self.metrics.append({"step": done} | numbers)
            if self.progress:
                self.progress(done, self.steps, **numbers)
                if done % self.section.evaluate_every == 0 or done in (1, self.steps):
                    said = ", ".join(f"{k} {v:.4g}" for k, v in numbers.items() if isinstance(v, float))
                    print(f"step {done}/{self.steps}: {said}", flush=True)
            asked = self.stop.agreed()
            if asked or (done % self.section.checkpoint_every == 0 and done < self.steps):
                self.checkpoints.save(self.engine, {"metrics": self.metrics})
            if asked:
                raise checkpoint.interrupted(self.stage.name, done)

    def publish(self, numbers: dict[str, Any], counts: Counts | None = None) -> None:
        """Export the model and publish. Rank 0 writes."""
        if not self.world.first:
            return
        files = checkpoint.write_export(self.building, self.net, self.tokenizer, self.section_window())
        files.append(write_rows(self.building, "metrics.jsonl", self.metrics))
        numbers |= {"parameters": model.parameters(self.net), "steps": self.steps, "steps_skipped": self.engine.skipped}
        self.building.publish(
            files, counts, numbers, {"step_seconds": round(self.seconds, 3), "ranks": self.world.size}
        )
        print(json.dumps(numbers), flush=True)

    def section_window(self) -> int:
        """Positions the model is made for."""
        return int(self.net.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]


def write_rows(building: Building, path: str, rows: list[dict[str, Any]]) -> File:
    """Write JSON lines into the artifact in the making; its manifest entry. What is not finite becomes null."""
    clean = [{k: v if not isinstance(v, float) or np.isfinite(v) else None for k, v in row.items()} for row in rows]
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in clean)
    building.storage.write(building.file(path), text.encode())
    return artifact.describe(building.storage, building.pointer.folder, path, rows=len(rows))


def open_stage(job: Job, world: World, stage: Stage, before: str) -> tuple[Published | Building, Published]:
    """Open a stage that continues the model of the stage `before`; the same on all ranks."""

    def opened() -> tuple[Published | Building, Published]:
        source = source_model(job, before)
        section = {stage.name: job.recipe.section(stage.name)}
        found = artifact.open_stage(
            job.storage, job.run, stage, section, job.recipe.seed, [source.as_input()], force=job.force
        )
        return found, source

    return launch.by_first(world, opened)
