"""The loop of a stage that trains a model: checkpoints, looks, stopping in good order, publishing."""

from __future__ import annotations

import json
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from inference import network
from pipeline import lines
from pipeline.artifact import Building, Counts, File, Stage
from pipeline.errors import MachineError, StageError
from pipeline.recipe import Pretrain, Rl, Sft
from tokenizer.bpe import Tokenizer
from training.engine import checkpoint
from training.engine.engine import Engine
from training.engine.export import write_export
from training.launch import processes
from training.launch.board import Board
from training.launch.command import TrainingJob
from training.launch.processes import World
from training.launch.watchdog import Watchdog, stragglers

_MEAN_STEPS = 10


class Loop(ABC):
    """From the last checkpoint, or from `net` with optimizer and schedule afresh, to the last step."""

    def __init__(
        self,
        job: TrainingJob,
        world: World,
        building: Building,
        stage: Stage,
        net: nn.Module,
        tokenizer: Tokenizer,
        steps: int,
    ) -> None:
        self.job, self.world, self.building, self.stage, self.steps = job, world, building, stage, steps
        self.section: Pretrain | Sft | Rl = getattr(job.recipe, stage.name)
        self.engine = Engine(net, self.section.optimizer, steps, self.section.precision, world, job.shape)
        self.net, self.tokenizer = self.engine.plain, tokenizer  # current after `engine.refresh_plain`
        self.checkpoints = checkpoint.Checkpoints(
            building.storage, building.work, world, self.section.keep_checkpoints, tokenizer
        )
        self.stop = checkpoint.Stop(world)
        self.progress = Board(building.storage, building.progress_folder, stage.name, "step") if world.first else None
        self.metrics: list[dict[str, Any]] = []
        self.first_step = 0
        self.seconds = self.waited = 0.0  # in steps; of these, for data
        self.flops: float | None = None  # a token, where a stage learns from all it computes
        self.peak = network.peak_flops(world.device)
        self.start: str | None = None  # a checkpoint of another fingerprint to begin with

    @abstractmethod
    def step(self) -> dict[str, Any]:
        """Take one optimizer step; its numbers. All but `tokens` are shown, and `tokens` as a speed."""

    def evaluate(self) -> dict[str, Any]:
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
            if isinstance(error, RuntimeError) and (gone := processes.lost(self.world, error)):
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
                laps = processes.all_gather(self.world, self.engine.laps.taken())
                if self.world.first and self.world.size > 1:
                    for told in stragglers(self.world, laps):
                        print(told, flush=True)
                self.engine.refresh_plain()
                numbers |= self.evaluate()
            self.metrics.append({"step": done} | numbers)
            if self.progress:
                shown = {name: value for name, value in lines.finite(numbers).items() if name != "tokens"}
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
        self.engine.refresh_plain()
        if not self.world.first:
            return
        made = write_export(
            self.building.storage, self.building.pointer.folder, self.building.work, self.net, self.tokenizer
        )
        made += [lines.write_rows(self.building, "metrics.jsonl", self.metrics), *files]
        numbers |= {"parameters": network.parameters(self.net), "steps": self.steps}
        numbers["steps_skipped"] = self.engine.skipped
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
