"""Finds the stages of a run that are published already, without Spark, DeepSpeed or torch: in seconds for all of them.

    python -m pipeline.reuse --recipe … --root … --run … [--step pretrain]

Each stage is opened by its own code, so its fingerprint is the one that a run of the stage has, and what was published
is verified. Writes the run's pointers as far as it comes, and exits with 10 at the first stage that has to run.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

from pipeline import command, errors
from pipeline.command import Job
from pipeline.errors import NotPublished
from pipeline.stages import ROAD, STEPS, Step


def find(job: Job, step: Step) -> None:
    """Let the run reuse what the step published. Raises `NotPublished` where it has to run."""
    module, _, function = step.opens.partition(":")
    try:
        # By name, since a stage's room may import this one, and not the other way round.
        opens = getattr(import_module(module), function)
        opens(replace(job, published_only=True), *([step.of] if step.of else []))
    except ImportError as error:  # this process runs where the stage itself does not, as on Kubernetes
        raise NotPublished(
            f"whether {step.name} is published is not known here: {error}", f"run {step.name}"
        ) from error


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--step", choices=[step.name for step in ROAD], help="find this one only; default: all")
    options = parser.parse_args()
    job = command.job(options)
    for step in [STEPS[options.step]] if options.step else ROAD:
        find(job, step)


if __name__ == "__main__":
    errors.run(main)
