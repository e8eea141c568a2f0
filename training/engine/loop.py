"""The training loop of all stages: steps, evaluation, checkpoints, stopping in good order, publishing.

A stage subclasses `Loop` with its `step`, and where it needs them `evaluate`, `state` and `restore`; then it calls
`run` and `publish`.
"""

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
from pipeline.errors import Interrupted, MachineError, StageError
from pipeline.recipe import Pretrain, Rl, Sft
from tokenizer.bpe import Tokenizer
from training.engine import checkpoint
from training.engine.engine import Engine
from training.engine.export import write_export
from training.launch import processes
from training.launch.command import TrainingJob
from training.launch.processes import World
from training.launch.stop import StopSignal
from training.launch.tensorboard import TensorBoardProgress
from training.launch.watchdog import Watchdog, stragglers

_MEAN_STEPS = 10  # of the first and last loss in the manifest: a single step's loss is mostly its batch's noise


class Loop(ABC):
    """Trains from the newest checkpoint, or from `net` with a new optimizer and schedule, to the last step."""

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
        self.net, self.tokenizer = self.engine.plain, tokenizer  # at ZeRO 3 up to date after `engine.refresh_plain`
        self.checkpoints = checkpoint.Checkpoints(
            building.storage, building.work, world, self.section.keep_checkpoints, tokenizer
        )
        self.stop = StopSignal(world)
        self.progress: TensorBoardProgress | None = None  # rank 0's alone
        if world.first:
            self.progress = TensorBoardProgress(building.storage, building.progress_folder, stage.name, "step")
        self.metrics: list[dict[str, Any]] = []
        self.first_step = 0  # steps that earlier attempts took
        self.step_seconds = self.data_seconds = 0.0  # of this attempt; the second is part of the first
        self.flops_per_token: float | None = None  # where all computed tokens are learned, so that MFU means something
        self.peak_flops = network.peak_flops(world.device)
        self.continue_from: str | None = None  # a checkpoint of another fingerprint to begin with

    @abstractmethod
    def step(self) -> dict[str, Any]:
        """Take one optimizer step and return its metrics. `tokens`, if among them, is shown as tokens per second."""

    def evaluate(self) -> dict[str, Any]:
        """Metrics of the model between steps, every `evaluate_every` steps. All ranks call it."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside model, optimizer and step: plain data."""
        return {"metrics": self.metrics}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.metrics = state["metrics"]

    def remedy(self) -> str:
        """The remedy of the error that ends a run of steps without a finite gradient."""
        return (
            f"look for damaged data in these rows, or lower {self.stage.name}.optimizer.lr (and muon_lr), with which "
            "the stage begins anew"
        )

    def run(self) -> None:
        """Train to the last step. Errors of torch and DeepSpeed that a user can mend become ours."""
        try:
            with Watchdog(self.world, self.job.step_timeout) as watchdog:
                self._train(watchdog)
        except StageError as error:
            if self.engine.broken_batch is None:
                raise
            # Steps without a finite gradient: the rows of the last one are kept, since they may be the cause.
            name = f"{self.building.work}/broken/step-{self.engine.done:08d}-rank-{self.world.rank:05d}.pt"
            checkpoint.write_tensors(self.building.storage, name, dict(self.engine.broken_batch))
            what = f"{error.what}; the rows of rank {self.world.rank} are in {self.building.storage.path(name)}"
            raise StageError(what, f"unchanged it ends at the same step: {self.remedy()}") from error
        except (RuntimeError, MemoryError) as error:
            # On a CPU torch reports missing memory as a plain RuntimeError, which only its text tells apart.
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise MachineError(
                    f"step {self.engine.done + 1} needs more memory than {self.world.device} has: {error}",
                    "start again with a smaller --micro-batch, a higher --zero-stage or --offload: the stage resumes "
                    "from its last checkpoint",
                ) from error
            if isinstance(error, RuntimeError) and (node_error := processes.node_error(self.world, error)):
                raise node_error from error
            raise

    def _train(self, watchdog: Watchdog) -> None:
        # 1. Resume from a checkpoint, if there is one.
        state = self.checkpoints.load(self.engine, self.continue_from)
        if state is not None:
            self.restore(state)
        self.first_step = self.engine.done
        while self.engine.done < self.steps:
            # 2. One optimizer step.
            watchdog.beat(self.engine.done + 1)
            started, data_before = time.perf_counter(), self.data_seconds
            metrics = self.step()
            seconds, data_seconds = time.perf_counter() - started, self.data_seconds - data_before
            self.step_seconds += seconds
            done = self.engine.done
            # 3. Evaluation, which may take longer than a step: the watchdog's time begins anew.
            evaluated = done % self.section.evaluate_every == 0 or done == self.steps
            if evaluated:
                watchdog.beat(done)
                self._warn_of_stragglers()
                self.engine.refresh_plain()
                metrics |= self.evaluate()
            # 4. Metrics go into the artifact, with the speed beside them into the progress.
            self.metrics.append({"step": done} | metrics)
            if self.progress:
                speed = self._speed(metrics.get("tokens", 0), seconds, data_seconds)
                self._show(self.progress, metrics, speed, printed=evaluated or done == 1)
            # 5. A checkpoint. None is saved while steps are skipped: it would push out an older one, from which a lower
            # learning rate still helps (decision "none is saved while steps are skipped").
            stopping = self.stop.agreed()
            due = done % self.section.checkpoint_every == 0 and not self.engine.skipped_in_a_row
            if stopping or done == self.steps or due:
                watchdog.beat(done)
                self.checkpoints.save(self.engine, self.state())
            if stopping:
                raise Interrupted(
                    f"{self.stage.name} was asked to stop and saved step {done}", "start it again: it resumes there"
                )

    def _warn_of_stragglers(self) -> None:
        """Print which ranks were much slower than the fastest since the last evaluation. All ranks call it."""
        seconds = processes.all_gather(self.world, self.engine.forward_timer.elapsed())
        if self.world.first and self.world.size > 1:
            for warning in stragglers(self.world, seconds):
                print(warning, flush=True)

    def _show(
        self, progress: TensorBoardProgress, metrics: dict[str, Any], speed: dict[str, float], printed: bool
    ) -> None:
        """Record a step in the progress and, if `printed`, as a line of the log with its metrics and main speeds."""
        shown = {name: value for name, value in lines.finite(metrics).items() if name != "tokens"}
        progress(self.engine.done, self.steps, **shown, **speed)
        if printed:
            shown |= {name: value for name, value in speed.items() if name in ("tokens_per_second", "mfu")}
            text = ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if value is not None)
            print(f"step {self.engine.done}/{self.steps}: {text}", flush=True)

    def _speed(self, tokens: int, seconds: float, data_seconds: float) -> dict[str, float]:
        """Time and memory of steps: for the progress, since an artifact holds nothing that differs from run to run."""
        speed: dict[str, float] = {"step_seconds": round(seconds, 4), "data_wait": round(data_seconds, 4)}
        speed["peak_bytes"] = _peak_bytes(self.world)  # of this rank
        if tokens:
            speed["tokens_per_second"] = round(tokens / seconds, 1)
            if self.flops_per_token:
                flops = self.flops_per_token * tokens / seconds / self.world.size  # FLOP/s of a rank
                speed["tflops"] = round(flops / 1e12, 6)
                if self.peak_flops:
                    speed["mfu"] = round(flops / self.peak_flops, 4)
        return speed

    def publish(self, numbers: dict[str, Any], counts: Counts | None = None, files: Sequence[File] = ()) -> None:
        """Export the model and publish. All ranks call it, rank 0 writes."""
        # 1. The CPU seconds of the other ranks, which rank 0 alone cannot measure.
        other_cpu_seconds = torch.tensor(0.0 if self.world.first else time.process_time(), device=self.world.device)
        if self.world.size > 1:
            dist.all_reduce(other_cpu_seconds)
        self.engine.refresh_plain()
        if not self.world.first:
            return
        # 2. The content of the artifact: the model, the metrics, the stage's own files.
        exported = write_export(
            self.building.storage, self.building.pointer.folder, self.building.work, self.net, self.tokenizer
        )
        content = [*exported, lines.write_rows(self.building, "metrics.jsonl", self.metrics), *files]
        numbers |= {"parameters": network.parameters(self.net), "steps": self.steps}
        numbers["steps_skipped"] = self.engine.skipped
        # 3. How it was made, which is no part of the content: the speed is that of this attempt's steps.
        tokens = sum(row.get("tokens", 0) for row in self.metrics[self.first_step :])
        run_numbers: dict[str, Any] = {
            "ranks": self.world.size,
            "device": self.world.device.type,
            "resumed_at": self.first_step,
            "zero_stage": self.job.shape.zero_stage,
        } | self._speed(tokens, self.step_seconds, self.data_seconds)
        self.building.publish(content, counts, numbers, run_numbers, float(other_cpu_seconds))
        print(json.dumps(numbers), flush=True)


def _peak_bytes(world: World) -> int:
    """The most memory this rank has used: the GPU's, or without one the process's."""
    if world.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(world.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def mean_loss(metrics: Sequence[dict[str, Any]]) -> float | None:
    """Mean of the finite losses; None if no step has one."""
    losses = [row["loss"] for row in metrics if np.isfinite(row["loss"])]
    return round(sum(losses) / len(losses), 6) if losses else None


def loss_ends(metrics: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """`loss_first` and `loss_last`: the mean over the first and over the last ten steps."""
    return {"loss_first": mean_loss(metrics[:_MEAN_STEPS]), "loss_last": mean_loss(metrics[-_MEAN_STEPS:])}
