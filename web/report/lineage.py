"""The artifacts behind a run: what each was made from, what it cost, and by which commit of the code."""

from __future__ import annotations

from typing import Any

from pipeline import artifact
from pipeline.artifact import Published, RunArtifacts
from pipeline.stages import label
from web.words import facts, when


def lineage(run: RunArtifacts) -> list[dict[str, Any]]:
    """All artifacts behind the run, inputs before what was made from them, each with its inputs and its cost."""
    step_names = {published.folder: name for name, published in run.artifacts.items()}
    artifacts: dict[str, Published] = {}
    for published in run.artifacts.values():
        for ancestor in artifact.lineage(run.storage, published):
            artifacts.setdefault(ancestor.folder, ancestor)
    chain = []
    for folder, published in artifacts.items():
        content, cost = published.content, published.manifest.run
        name = step_names.get(folder, content.stage)
        chain.append(
            {
                "name": label(name),
                "state": run.pointers[name].state if folder in step_names else "input",
                "folder": folder,
                "content": content,
                "hash": published.manifest.content_hash,
                "bytes": sum(file.bytes for file in content.files),
                "run": cost,
                "date": when(cost.started + cost.seconds),
                "notes": facts({key.replace("_", " "): value for key, value in cost.numbers.items()}),
                "raw": [source for source in content.inputs if not source.fingerprint],
                "sources": [source for source in content.inputs if source.fingerprint],
            }
        )
    return chain


def totals(chain: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last rows of the table of costs: of all artifacts, and of those of this run where it reused others.

    Each: label, seconds, cpu_seconds, files, bytes.
    """
    made = [entry for entry in chain if entry["state"] == "published"]
    rows = [("Total", chain)] if chain else []
    if 0 < len(made) < len(chain):
        rows.append(("of this run", made))
    return [
        {
            "label": name,
            "seconds": sum(entry["run"].seconds for entry in entries),
            "cpu_seconds": sum(entry["run"].cpu_seconds for entry in entries),
            "files": sum(len(entry["content"].files) for entry in entries),
            "bytes": sum(entry["bytes"] for entry in entries),
        }
        for name, entries in rows
    ]


def commits(chain: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """(commit of the code, names of what it made), in the order of the artifacts; those without are left out."""
    by_commit: dict[str, list[str]] = {}
    for entry in chain:
        if entry["run"].commit:
            by_commit.setdefault(entry["run"].commit, []).append(entry["name"])
    return list(by_commit.items())
