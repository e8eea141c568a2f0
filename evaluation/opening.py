"""What identifies the artifact of stage `evaluation`: without torch, so that finding it published costs little."""

from __future__ import annotations

from evaluation import demonstrations, identity
from pipeline import command
from pipeline.artifact import Building, Published, Stage
from pipeline.command import Job
from pipeline.stages import EVALUATIONS

# Raise the version when the code of the stage changes what comes out.
STAGE = Stage("evaluation", 2, libraries=("torch", "transformers"))


def evaluation(job: Job, of: str) -> Published | Building:
    """Open the evaluation of the model that the step `of` made."""
    assets = identity.assets() | demonstrations.assets(job.recipe.evaluation)
    return command.open_stage(job, STAGE, [command.source(job, of)], assets, EVALUATIONS[of].name)
