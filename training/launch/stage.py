"""Opening a stage on all ranks: rank 0 alone reads manifests and takes the work folder, and broadcasts the result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from inference import network
from pipeline import command
from pipeline.artifact import Building, Published
from pipeline.command import Job
from tokenizer.bpe import Tokenizer
from training.launch import processes
from training.launch.opening import Opening
from training.launch.processes import World


@contextmanager
def opened(job: Job, opening: Opening) -> Iterator[tuple[World, Published | Building, list[Published]]]:
    """The ranks of this launch, the stage as `Opening.open` opens it, and its sources: the same on all ranks.

    An error of the block is recorded in the run; without one, no rank leaves before all have come to the end.
    """
    with command.recording(job, opening.stage.name):
        world = processes.start(job.recipe.seed)
        building, sources = processes.run_on_first(world, lambda: opening.open(job))
        yield world, building, sources
        processes.barrier(world)


def load_model(source: Published) -> tuple[nn.Module, Tokenizer]:
    """The model of an artifact, to train further, and its tokenizer."""
    folder = source.on_disk()
    return network.load(folder), Tokenizer.load(folder)
