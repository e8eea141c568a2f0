"""How the documents score on each rule of the filter, and where the recipe's thresholds cut.

From the columns of extract: of a large corpus a sample, the documents with the smallest ids. Ids are hashes, so the
sample is random, and always the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq
from markupsafe import Markup
from pydantic import ValidationError

from jobs.page import quality
from jobs.page.quality import Check
from pipeline.artifact import Published
from pipeline.recipe import Filter
from web.charts import Limit, histogram
from web.words import shown

DOCUMENTS = 10_000  # that are sampled
PARTS = 64  # files that are read for them: a snapshot has 90,000
_COUNTS = ("words", "sentences")  # scores that span powers of ten


@dataclass
class _Score:
    """What the sample says of one score. `limits`: relation and value, to the languages that have it."""

    values: list[float] = field(default_factory=list)
    limits: dict[tuple[str, float], set[str]] = field(default_factory=dict)
    beyond: dict[str, int] = field(default_factory=dict)  # documents by reason


@dataclass(frozen=True)
class Drawn:
    """One score on the page. `limits` as text; `beyond`: (reason, documents beyond the limit, their share)."""

    name: str
    limits: list[str]
    beyond: list[tuple[str, int, float]]
    picture: Markup

    @property
    def drops(self) -> bool:
        """Whether a sampled document is beyond a limit."""
        return any(count for _, count, _ in self.beyond)


def rules(stages: Mapping[str, Published]) -> Filter | None:
    """The thresholds of the run's filter; None where it has not run, or by another version's rules."""
    if "filter" not in stages:
        return None
    try:
        return Filter.model_validate(stages["filter"].content.recipe)
    except ValidationError:
        return None


def checks(row: Mapping[str, Any], recipe: Filter | None) -> list[Check]:
    """Every rule on a row of extract; none on a page that extract dropped, or where a score is of another version."""
    if recipe is None or row.get("reason") is not None:
        return []
    try:
        return list(quality.checks(row, recipe))
    except (KeyError, TypeError):  # a column that an earlier extract did not write, or a null in it
        return []


def histograms(stages: Mapping[str, Published]) -> tuple[int, list[Drawn]]:
    """(documents in the sample, a histogram for each score that has a threshold), in the order of the rules."""
    recipe = rules(stages)
    rows = _sample(stages["extract"]) if recipe and "extract" in stages else []
    by_name: dict[str, _Score] = {}
    for row in rows:
        counted: set[str] = set()  # words have two limits, but a document one number of words
        for check in checks(row, recipe):
            if isinstance(check.value, bool) or not isinstance(check.value, (int, float)):
                continue
            score = by_name.setdefault(check.score, _Score())
            if check.score not in counted:
                score.values.append(check.value)
                counted.add(check.score)
            score.limits.setdefault((check.relation, check.limit), set()).add(row["language"])
            score.beyond[check.reason] = score.beyond.get(check.reason, 0) + check.broken
    return len(rows), [_drawn(name, score) for name, score in by_name.items()]


def _drawn(name: str, score: _Score) -> Drawn:
    limits = sorted(score.limits)
    relations = [relation for relation, _ in limits]
    texts = []
    for relation, value in limits:
        # Languages are named only where one of them has a limit of its own.
        languages = f" ({', '.join(sorted(score.limits[relation, value]))})" if relations.count(relation) > 1 else ""
        texts.append(f"{relation} {shown(value)}{languages}")
    picture = histogram(
        name.replace("_", " "),
        score.values,
        [Limit(value, relation == "at least") for relation, value in limits],
        logarithmic=name in _COUNTS,
    )
    total = max(1, len(score.values))
    return Drawn(name, texts, [(reason, count, count / total) for reason, count in score.beyond.items()], picture)


def _sample(extract: Published) -> list[dict[str, Any]]:
    """Rows of documents with text: id, language and scores."""
    rows: list[dict[str, Any]] = []
    wanted = ("id", "reason", "language", "language_score", "license", "quality", *quality.COLUMNS)
    for name in extract.files(".parquet")[:PARTS]:
        with extract.storage.reading(name) as stream:
            file = pq.ParquetFile(stream)
            table = file.read([column for column in wanted if column in file.schema_arrow.names])
        if "language" in table.column_names:
            with_text = table.filter(table["reason"].is_null()).sort_by("id").slice(0, DOCUMENTS)
            rows = sorted([*rows, *with_text.to_pylist()], key=lambda row: str(row["id"]))[:DOCUMENTS]
    return rows
