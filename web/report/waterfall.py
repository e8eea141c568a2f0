"""Pages kept and dropped, stage by stage, from the first response to the last shard."""

from __future__ import annotations

from typing import Any

from pipeline.artifact import Counts, RunArtifacts
from pipeline.stages import PAGES, label


def waterfall(run: RunArtifacts) -> list[dict[str, Any]]:
    """A bar for each reason to drop pages, and for the pages that each stage kept. Shares are of all responses.

    Each: stage, label, count, share, `kind` (kept or dropped), and `left` and `width` of its bar, as shares.
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
    """(documents kept by the last stage that has run, responses read by the first); None if none has run."""
    counts = [of_stage for _, of_stage in counted(run)]
    return (counts[-1].kept, counts[0].in_) if counts else None


def counted(run: RunArtifacts) -> list[tuple[str, Counts]]:
    """The published steps that keep and drop pages, each with its counts."""
    steps = [(step.name, run.artifacts[step.name].content.counts) for step in PAGES if step.name in run.artifacts]
    return [(name, counts) for name, counts in steps if counts]
