"""The artifacts behind a run: what each was made from, and its cost."""

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
