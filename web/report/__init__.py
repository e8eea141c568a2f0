"""The report of a run: one HTML file that says what came in, what stayed, what was learned, and from what.

    python -m web.report --root .crawl2chat/data --run demo [--force]

It needs no network and runs no script. What a run has not made is shown as not run. Page text is hostile input: it is
escaped, isolated in its direction, and its addresses are shown, not linked.
"""

from __future__ import annotations

from typing import Any

import yaml

from pipeline import artifact
from pipeline.artifact import Published, RunArtifacts, Stage
from pipeline.errors import ArtifactError
from pipeline.stages import MODELS, PAGES, REPORT, ROAD
from pipeline.storage import Storage
from web.page import template
from web.report import documents
from web.report.learning import compression, loss_section, numbers, reinforcement
from web.report.lineage import lineage
from web.report.models import models
from web.report.story import story
from web.report.waterfall import waterfall
from web.words import when

STAGE = Stage("report", 3, ("jinja2", "pyarrow"))
FILE = "report.html"


def opened(storage: Storage, name: str) -> RunArtifacts:
    """What a run has made but its report. Raises `ArtifactError` where that is nothing."""
    run = RunArtifacts(storage, name)
    for made in (run.pointers, run.artifacts):
        made.pop(REPORT.name, None)
    if not run.artifacts:
        raise ArtifactError(
            f"run {name!r} below {storage.root} has published nothing", "name a run with --run; see runs/ there"
        )
    return run


def recipe_name(run: RunArtifacts) -> str:
    """The recipe's name, from the run's `recipe.yaml` where it is there. Not checked: an old one is still a name."""
    file = f"runs/{run.name}/recipe.yaml"
    found = yaml.safe_load(run.storage.read(file)) if run.storage.exists(file) else None
    return str(found.get("name", run.name)) if isinstance(found, dict) else run.name


def view(run: RunArtifacts) -> dict[str, Any]:
    """All that the template shows."""
    finished = max(made.manifest.run.started + made.manifest.run.seconds for made in run.artifacts.values())
    redactions, masked = run.number("redact", "redactions") or {}, run.number("redact", "samples") or {}
    return {
        "run": run.name,
        "recipe": recipe_name(run),
        "date": when(finished),
        "story": story(run),
        "states": [
            (step.name, step.label, run.pointers[step.name].state if step.name in run.pointers else "") for step in ROAD
        ],
        "pages": {step.name for step in PAGES},
        "made": run.artifacts,
        "bars": waterfall(run),
        "unreadable": run.number("extract", "unreadable") or [],
        "others": sorted((run.number("extract", "other_records") or {}).items()),
        "groups": documents.groups(run.artifacts),
        "redactions": [
            (kind, count, masked.get(kind, []))
            for kind, count in sorted(redactions.items(), key=lambda item: (-item[1], item[0]))
        ],
        "redactable": run.artifacts["redact"].content.recipe.get("kinds", []) if "redact" in run.artifacts else [],
        "duplicates": numbers(run, "deduplicate"),
        "tokenizer": numbers(run, "tokenizer"),
        "shard": numbers(run, "shard") + compression(run),
        "models_learned": [
            (step.name, step.label, reinforcement(run) if step.name == "rl" else loss_section(run, step.name))
            for step in MODELS
        ],
        "models": models(run),
        "lineage": lineage(run),
    }


def render(run: RunArtifacts) -> str:
    """The page."""
    return template("report.html.j2").render(view(run))


def publish(storage: Storage, run_name: str, force: bool = False) -> Published:
    """Make the report of a run from all it has published, or find the one that was made of just that."""
    run = opened(storage, artifact.run_name(run_name))
    building = artifact.open_stage(
        storage,
        run.name,
        STAGE,
        # The page bears the run's name, and says what is not finished.
        {"run": run.name, "states": {name: pointer.state == "running" for name, pointer in run.pointers.items()}},
        0,
        [made.as_input() for made in run.artifacts.values()],
        force=force,
    )
    if isinstance(building, Published):
        return building
    storage.write(building.file(FILE), render(run).encode())
    return building.publish([artifact.describe(storage, building.pointer.folder, FILE, rows=len(run.artifacts))])
