"""Opening a stage on all ranks: rank 0 alone reads manifests and takes the work folder, and broadcasts the result."""

from __future__ import annotations

from torch import nn

from inference import network
from pipeline.artifact import Building, Published
from pipeline.command import Job
from tokenizer.bpe import Tokenizer
from training.launch import processes
from training.launch.opening import Opening
from training.launch.processes import World


def open_stage(job: Job, world: World, opening: Opening) -> tuple[Published | Building, list[Published]]:
    """As `Opening.open`, on all ranks."""
    return processes.run_on_first(world, lambda: opening.open(job))


def load_model(source: Published) -> tuple[nn.Module, Tokenizer]:
    """The model of an artifact, to train further, and its tokenizer."""
    folder = source.on_disk()
    return network.load(folder), Tokenizer.load(folder)
