"""What a measurement leaves: `results.json`, whose numbers are the manifest's too."""

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
    """The command line of a stage that measures a model: `--of` says which of the run's steps made it."""
    parser: argparse.ArgumentParser = command.parser(description)
    parser.add_argument("--of", required=True, choices=tuple(EVALUATIONS), help="the step whose model is measured")
    options = parser.parse_args()
    return command.job(options), options.of


def spare() -> bool:
    """Whether this process has nothing to do: a measurement is one process, and this is another rank of a launch."""
    return os.environ.get("RANK", "0") != "0"


def publish(building: Building, results: dict[str, Any]) -> Published:
    """Publish `results.json`."""
    building.storage.write(building.file("results.json"), json.dumps(results, ensure_ascii=False, indent=1).encode())
    files = [artifact.describe(building.storage, building.pointer.folder, "results.json", 1)]
    return building.publish(files, numbers=results["numbers"])
