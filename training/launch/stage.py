"""How all ranks of a launch open a stage together: rank 0 alone reads manifests, and all get the same answer."""

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
    """As `command.open_stage`, with the artifacts it reads, on all ranks."""

    def opened() -> tuple[Published | Building, list[Published]]:
        read = sources()
        return command.open_stage(job, stage, read, assets()), read

    return processes.run_on_first(world, opened)


def continued(source: Published) -> tuple[nn.Module, Tokenizer]:
    """The model that an artifact holds, and its tokenizer."""
    folder = source.on_disk()
    return network.load(folder), Tokenizer.load(folder)
