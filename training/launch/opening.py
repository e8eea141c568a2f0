"""What identifies the artifact of each training stage: without torch, so that finding it published costs little.

Importing torch and DeepSpeed takes ten seconds and more; whether a stage is published is known in one
(`pipeline.reuse`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline import artifact, command
from pipeline.artifact import Building, Published, Stage
from pipeline.command import Job
from pipeline.errors import ArtifactError
from training.data import conversations

_LIBRARIES = ("torch", "transformers", "deepspeed")


def _no_assets(job: Job) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Opening:
    """A stage, the artifacts that it reads, and hashes of all else that it reads."""

    stage: Stage
    sources: Callable[[Job], list[Published]]
    assets: Callable[[Job], dict[str, str]] = _no_assets

    def open(self, job: Job) -> tuple[Published | Building, list[Published]]:
        """As `command.open_stage`, with the sources."""
        sources = self.sources(job)
        return command.open_stage(job, self.stage, sources, self.assets(job)), sources


def _shards(job: Job) -> list[Published]:
    """The shard artifact to read (`--input`, or the run's), the tokenizer that made it, and the shards to mix in."""
    shards = command.source(job, "shard")
    for source in shards.content.inputs:
        if source.stage == "tokenizer":
            others = [artifact.read(job.storage, folder) for folder in job.recipe.pretrain.mix]
            return [shards, artifact.read(job.storage, source.location), *others]
    raise ArtifactError(f"{shards.folder} does not say which tokenizer made it", "run the stage shard again")


def _beginning(job: Job) -> dict[str, str]:
    """Hashes of the weights or the checkpoint that the recipe begins with, for the fingerprint; without any, none."""
    section = job.recipe.pretrain
    if not section.weights and not section.continue_from:
        return {}
    from inference import network  # both import torch
    from training.engine import checkpoint

    hashes = network.assets(section.weights)
    if section.continue_from:
        # The commit file holds the hashes of all files of the checkpoint.
        hashes["continue_from"] = artifact.digest(checkpoint.read_commit(job.storage, section.continue_from))
    return hashes


# Raise a version when the code of the stage changes what comes out.
PRETRAIN = Opening(Stage("pretrain", 2, _LIBRARIES), _shards, _beginning)
SFT = Opening(
    Stage("sft", 2, _LIBRARIES),
    lambda job: [command.source(job, "pretrain")],
    lambda job: conversations.assets(job.recipe.sft.conversations),
)
RL = Opening(Stage("rl", 2, _LIBRARIES), lambda job: [command.source(job, "sft")])


def pretrain(job: Job) -> Published | Building:
    """Open the stage in one process; `sft` and `rl` likewise."""
    return PRETRAIN.open(job)[0]


def sft(job: Job) -> Published | Building:
    """See `pretrain`."""
    return SFT.open(job)[0]


def rl(job: Job) -> Published | Building:
    """See `pretrain`."""
    return RL.open(job)[0]
