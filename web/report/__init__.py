"""The report of a run: one HTML file on the pages that came in and stayed, the models, and all artifacts.

    python -m web.report --root .crawl2chat/data --run demo [--force]

It needs no network and runs no script. Stages without an artifact are shown as not run. Page text is hostile input: it
is escaped, its text direction is isolated, and URLs are shown but not linked.
"""

from __future__ import annotations

import hashlib
from typing import Any

from markupsafe import Markup

from pipeline import artifact
from pipeline.artifact import Identity, Pointer, Published, RunArtifacts, Stage
from pipeline.errors import ArtifactError
from pipeline.stages import MODELS, PAGES, REPORT, ROAD, STEPS, label
from pipeline.storage import Storage
from web.page import template
from web.report import documents, scores, settings
from web.report.learning import compression, loss_section, numbers, reinforcement
from web.report.lineage import commits, lineage, totals
from web.report.models import models
from web.report.story import story
from web.report.waterfall import waterfall
from web.words import when

STAGE = Stage("report", 5, ("jinja2", "pyarrow"))
FILE = "report.html"
# Sections of `report.html.j2` that steps have of their own, beside the models' and that of the pages.
SECTIONS = {
    "canary": "lineage",
    "deduplicate": "duplicates",
    "redact": "redacted",
    "tokenizer": "tokens",
    "shard": "tokens",
}

# Where the web application links to its other pages: in the file itself, which may lie anywhere, links lead nowhere.
_PLACE_OF_LINKS = Markup("<!-- links of the web application -->")


def opened(storage: Storage, name: str) -> RunArtifacts:
    """The artifacts of a run, without its report. Raises `ArtifactError` if there are none."""
    run = RunArtifacts(storage, name)
    for of_stage in (run.pointers, run.artifacts):
        of_stage.pop(REPORT.name, None)
    if not run.artifacts and not failures(run):
        raise ArtifactError(
            f"run {name!r} below {storage.root} has published nothing", "name a run with --run; see runs/ there"
        )
    return run


def failures(run: RunArtifacts) -> list[Pointer]:
    """The stages that failed, with error, remedy and the address of the log."""
    return [pointer for pointer in run.pointers.values() if pointer.state == "failed"]


def view(run: RunArtifacts) -> dict[str, Any]:
    """The values of `report.html.j2`."""
    ends = [made.manifest.run.started + made.manifest.run.seconds for made in run.artifacts.values()]
    finished = max([*ends, *(pointer.ended for pointer in failures(run))])
    chain = lineage(run)
    sampled, histograms = scores.histograms(run.artifacts)
    extracted = run.artifacts["extract"].content.counts if "extract" in run.artifacts else None
    redactions, masked = run.number("redact", "redactions") or {}, run.number("redact", "samples") or {}
    return {
        "run": run.name,
        "place_of_links": _PLACE_OF_LINKS,
        "recipe": artifact.recipe_name(run.storage, run.name) or run.name,
        "date": when(finished),
        "story": story(run),
        "states": [
            (step.name, step.label, run.pointers[step.name].state if step.name in run.pointers else "") for step in ROAD
        ],
        "section": section,
        "failures": [(label(pointer.name), pointer) for pointer in failures(run)],
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
        "licenses": list((run.number("redact", "licenses") or {}).items()),
        "redactable": run.artifacts["redact"].content.recipe.get("kinds", []) if "redact" in run.artifacts else [],
        "duplicates": numbers(run, "deduplicate"),
        "tokenizer": numbers(run, "tokenizer"),
        "shard": numbers(run, "shard") + compression(run),
        "models_learned": [
            (step.name, step.label, reinforcement(run) if step.name == "rl" else loss_section(run, step.name))
            for step in MODELS
        ],
        "models": models(run),
        "sampled": sampled,
        "extracted": extracted.kept if extracted else 0,
        "histograms": histograms,
        "settings": settings.of_run(run),
        "commits": commits(chain),
        "uncommitted": any(commit.endswith("+") for commit, _ in commits(chain)),
        "lineage": chain,
        "totals": totals(chain),
    }


def section(step: str) -> str:
    """The id of the section of `report.html.j2` that shows what a step made."""
    return SECTIONS.get(step) or ("models" if STEPS[step].of else "pages" if STEPS[step].counts else step)


def render(run: RunArtifacts) -> str:
    """The report as HTML."""
    return template("report.html.j2").render(view(run))


def served(html: str) -> str:
    """A report as the web application shows it: with a link to all runs."""
    return html.replace(_PLACE_OF_LINKS, ' · <a href="/">All runs</a>', 1)


def publish(storage: Storage, run_name: str, force: bool = False) -> Published:
    """Publish the report of a run; reuse one that was made from the same artifacts."""
    run = opened(storage, artifact.run_name(run_name))
    # An unfinished stage is shown with all that its pointer says; a finished one by its artifact, which is an input.
    states = {
        name: {} if pointer.finished else pointer.model_dump(include={"state", "error", "remedy", "log"})
        for name, pointer in run.pointers.items()
    }
    building = artifact.start(
        storage,
        run.name,
        Identity(
            STAGE,
            {
                "run": run.name,
                "states": states,
                "settings": hashlib.sha256(repr(settings.of_run(run)).encode()).hexdigest(),  # no artifact holds them
            },
            0,
            [made.as_input() for made in run.artifacts.values()],
        ),
        force=force,
    )
    if isinstance(building, Published):
        return building
    storage.write(building.file(FILE), render(run).encode())
    return building.publish([artifact.describe(storage, building.pointer.folder, FILE, rows=len(run.artifacts))])
