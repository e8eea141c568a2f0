"""What each artifact of a run was made from, and what that took."""

from __future__ import annotations

from typing import Any

from pipeline import artifact
from pipeline.artifact import Published, RunArtifacts
from pipeline.stages import label
from web.words import facts, when


def lineage(run: RunArtifacts) -> list[dict[str, Any]]:
    """All artifacts behind the run, in order, with what made them and what that took."""
    named = {made.folder: name for name, made in run.artifacts.items()}
    found: dict[str, Published] = {}
    for made in run.artifacts.values():
        for one in artifact.lineage(run.storage, made):
            found.setdefault(one.folder, one)
    chain = []
    for folder, one in found.items():
        name, content, spent = named.get(folder, one.content.stage), one.content, one.manifest.run
        chain.append(
            {
                "name": label(name),
                "state": run.pointers[name].state if folder in named else "input",
                "folder": folder,
                "content": content,
                "hash": one.manifest.content_hash,
                "bytes": sum(file.bytes for file in content.files),
                "run": spent,
                "date": when(spent.started + spent.seconds),
                "notes": facts({key.replace("_", " "): value for key, value in spent.numbers.items()}),
                "raw": [source for source in content.inputs if not source.fingerprint],
                "sources": [source for source in content.inputs if source.fingerprint],
            }
        )
    return chain
