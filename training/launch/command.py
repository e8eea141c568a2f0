"""The command line of a training stage: that of all stages, and the shape of the launch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline import command
from pipeline.command import Job
from pipeline.errors import RecipeError

STEP_TIMEOUT = 1500.0  # seconds: less than torch's own timeout, after which collectives give up without saying where


@dataclass(frozen=True)
class Shape:
    """How a model is spread over a launch. No part of a fingerprint: any shape makes the same model, but for rounding.

    `zero_stage`: 1 partitions the optimizer's state over the ranks, 2 gradients too, 3 weights too; below 3 B
    parameters more than 1 saves little. `offload`: optimizer state and step in the CPU's memory. `micro_batch`: at most
    so many rows at once per rank; None: as many as `likelihood.LOGIT_BYTES` allows. `fused_loss`: logits of one chunk
    of tokens at a time. `recompute`: activations of a layer are computed again in backward (activation checkpointing).
    `compile`: each layer by torch.compile.
    """

    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: bool = False
    micro_batch: int | None = None
    fused_loss: bool = False
    recompute: bool = False
    compile: bool = False


@dataclass(frozen=True)
class TrainingJob(Job):
    """A job with the shape of its launch."""

    shape: Shape
    step_timeout: float


def parse(description: str | None, arguments: Sequence[str] | None = None) -> TrainingJob:
    """Read the command line. Raises `RecipeError` for a shape that no launch can have."""
    parser = command.parser(description)
    shape = parser.add_argument_group("shape of the launch", "changes speed and memory, not what is built")
    shape.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3), default=1, help="ZeRO stage; default: 1")
    shape.add_argument("--offload", action="store_true", help="keep optimizer state and step in the CPU's memory")
    shape.add_argument("--micro-batch", type=int, help="rows per rank computed at once, at most")
    shape.add_argument("--fused-loss", action="store_true", help="compute logits in chunks, for memory")
    shape.add_argument("--recompute", action="store_true", help="compute activations again in backward, for memory")
    shape.add_argument("--compile", action="store_true", help="torch.compile each layer")
    parser.add_argument(
        "--step-timeout", type=float, default=STEP_TIMEOUT, help="seconds; a step that takes longer ends the launch"
    )
    # The deepspeed launcher appends it to every command line; the environment's LOCAL_RANK is what is read.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.offload and not options.zero_stage:
        raise RecipeError(
            "--offload needs a ZeRO stage of 1 to 3: at stage 0 the optimizer is torch's, on the model's device",
            "leave out --zero-stage 0",
        )
    if options.compile and options.zero_stage == 3:
        raise RecipeError(
            "--compile does not go with --zero-stage 3: each layer's hooks would be compiled anew", "leave out one"
        )
    if options.micro_batch is not None and options.micro_batch < 1:
        raise RecipeError(f"--micro-batch {options.micro_batch} is no number of rows", "give 1 or more")
    job = command.job(options)
    launch = Shape(
        options.zero_stage,
        options.offload,
        options.micro_batch,
        options.fused_loss,
        options.recompute,
        options.compile,
    )
    return TrainingJob(job.recipe, job.storage, job.run, job.input, job.force, launch, options.step_timeout)
