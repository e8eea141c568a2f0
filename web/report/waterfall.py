"""Pages kept and dropped: from the first response to the last shard."""

from __future__ import annotations

from typing import Any

from pipeline.artifact import Counts, RunArtifacts
from pipeline.stages import PAGES, label


def waterfall(run: RunArtifacts) -> list[dict[str, Any]]:
    """The bars from the first response to the last shard: what fell where, in counts and shares of the whole.

    Each: stage, label, count, share, and `left`, `width` (shares of the whole) of its bar; `kind` is kept or dropped.
    """
    stages = counted(run)
    if not stages or not stages[0][1].in_:
        return []
    whole = stages[0][1].in_

    def bar(stage: str, label: str, kind: str, count: int, left: int) -> dict[str, Any]:
        share = count / whole
        return {
            "stage": stage,
            "label": label,
            "kind": kind,
            "count": count,
            "share": share,
            "left": left / whole,
            "width": share,
        }

    bars = [bar("", "Responses read", "kept", whole, 0)]
    for stage, counts in stages:
        left = counts.in_
        for reason, count in sorted(counts.dropped.items(), key=lambda item: (-item[1], item[0])):
            left -= count
            bars.append(bar(stage, reason, "dropped", count, left))
        bars.append(bar(stage, f"After {label(stage).lower()}", "kept", counts.kept, 0))
    return bars


def kept_of(run: RunArtifacts) -> tuple[int, int] | None:
    """(documents that stayed to the end of what has run, responses that came in)."""
    known = [counts for _, counts in counted(run)]
    return (known[-1].kept, known[0].in_) if known else None


def counted(run: RunArtifacts) -> list[tuple[str, Counts]]:
    """The steps that keep and drop pages, of those that are made, each with its counts."""
    found = [(step.name, run.artifacts[step.name].content.counts) for step in PAGES if step.name in run.artifacts]
    return [(name, counts) for name, counts in found if counts]
