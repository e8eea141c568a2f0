"""Opening a stage on all ranks: rank 0 alone reads manifests and takes the work folder, and broadcasts the result."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from inference import network
from pipeline import command
from pipeline.artifact import Building, Published, Stage
from pipeline.command import Job
from tokenizer.bpe import Tokenizer
from training.launch import processes
from training.launch.processes import World


def open_stage(
    job: Job,
    world: World,
    stage: Stage,
    sources: Callable[[], list[Published]],
    assets: Callable[[], dict[str, str]] = dict,
) -> tuple[Published | Building, list[Published]]:
    """As `command.open_stage`, on all ranks; returns the artifacts of `sources` too, which the stage reads."""

    def on_first() -> tuple[Published | Building, list[Published]]:
        inputs = sources()
        return command.open_stage(job, stage, inputs, assets()), inputs

    return processes.run_on_first(world, on_first)


def load_model(source: Published) -> tuple[nn.Module, Tokenizer]:
    """The model of an artifact, to train further, and its tokenizer."""
    folder = source.on_disk()
    return network.load(folder), Tokenizer.load(folder)
