"""What evaluation and memorization share: the option `--of`, one process, and `results.json`."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from pipeline import artifact, command
from pipeline.artifact import Building, Published
from pipeline.command import Job
from pipeline.stages import EVALUATIONS


def parse(description: str | None) -> tuple[Job, str]:
    """Parse the command line of a stage that evaluates a model; returns the job, and the step that made the model."""
    parser: argparse.ArgumentParser = command.parser(description)
    parser.add_argument("--of", required=True, choices=tuple(EVALUATIONS), help="the step whose model is evaluated")
    options = parser.parse_args()
    return command.job(options), options.of


def other_rank() -> bool:
    """Whether this process is a rank other than 0 of a launch, and so has nothing to do: evaluation is one process."""
    return os.environ.get("RANK", "0") != "0"


def publish(building: Building, results: dict[str, Any]) -> Published:
    """Publish `results.json`; its `numbers` go to the manifest as well."""
    building.storage.write(building.file("results.json"), json.dumps(results, ensure_ascii=False, indent=1).encode())
    files = [artifact.describe(building.storage, building.pointer.folder, "results.json", 1)]
    return building.publish(files, numbers=results["numbers"])
