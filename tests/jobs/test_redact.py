"""redact writes the documents that stay, in order, with placeholders and counts, titles among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs import deduplicate, extract, filter, redact
from jobs.stage.table import read_rows, write_table
from pipeline import artifact
from pipeline.artifact import Building, Counts, Identity, Published, Stage
from tests.jobs.conftest import job

TEXTS = {
    "c1": "Write to maria.lopez@mail-server.org or ana@mail-server.org.",
    "a2": "Nothing personal here, version 3.2.1.4.",
    "b3": "A near copy that leaves: bob@mail-server.org.",
    "d4": "Ask 8.8.8.8 for it; e-mail joe@mail-server.org.",
}
TITLES = {"c1": "Contact ana@mail-server.org", "d4": "Who asks?"}


def upstream(
    root: Path, stage: Stage, rows: list[list[dict[str, Any]]], schema: Any, kept: int, *inputs: Published
) -> Published:
    """What a stage before redact publishes: a part for each list of rows."""
    made = job(root)
    reads = [source.as_input() for source in inputs]
    building = artifact.start(made.storage, "test", Identity(stage, made.recipe.section(stage.name), 1, reads))
    assert isinstance(building, Building)
    files = []
    for i, part in enumerate(rows):
        name = f"part-{i:05d}.parquet"
        write_table(made.storage, building.file(name), part, schema)
        files.append(artifact.describe(made.storage, building.pointer.folder, name, len(part)))
    return building.publish(files, Counts(in_=kept, kept=kept, dropped={}))


def test_what_stays_is_written_without_personal_data(spark: Any, tmp_path: Path) -> None:
    rows = [
        {"id": name, "url": f"https://a.org/{name}", "host": "a.org", "warc": "w", "offset": i, "date": "2024-01-01"}
        | {"license": "cc-by-4.0" if name == "a2" else None}
        | {"text": text, "title": TITLES.get(name), "language": "en", "language_score": 0.9, "reason": None}
        for i, (name, text) in enumerate(TEXTS.items())
    ]
    dropped = {"id": "x", "url": "https://a.org/x", "reason": "not_html"}
    text = upstream(tmp_path, extract.STAGE, [[rows[0], dropped, rows[1]], rows[2:]], extract.SCHEMA, 4)
    decided = [{"id": name, "cluster": name, "reason": None} for name in TEXTS]
    decided[2] |= {"cluster": "a2", "reason": "near_copy"}
    upstream(tmp_path, filter.STAGE, [decided[:2], decided[2:]], filter.SCHEMA, 4, text)
    upstream(tmp_path, deduplicate.STAGE, [decided[:2], decided[2:]], deduplicate.SCHEMA, 3, text)
    made = redact.run(job(tmp_path))
    assert made.content.counts == Counts(in_=3, kept=3, dropped={})
    assert made.content.numbers == {
        "redactions": {"EMAIL": 4, "IP": 1},
        "samples": {"EMAIL": ["xxx@xxxx-xxxxxx.xxx", "xxxxx.xxxxx@xxxx-xxxxxx.xxx"], "IP": ["0.0.0.0"]},
        "licenses": {"cc-by-4.0": 1},
    }
    found = [row for file in made.files(".parquet") for row in read_rows(made.storage, file)]
    assert [(row["id"], row["text"], json.loads(row["redactions"])) for row in found] == [
        ("c1", "Write to <EMAIL> or <EMAIL>.", {"EMAIL": 3}),
        ("a2", TEXTS["a2"], {}),
        ("d4", "Ask <IP> for it; e-mail <EMAIL>.", {"EMAIL": 1, "IP": 1}),
    ]
    assert [row["title"] for row in found] == ["Contact <EMAIL>", None, "Who asks?"]
    assert all((row["host"], row["date"]) == ("a.org", "2024-01-01") for row in found)
    assert [row["offset"] for row in found] == [0, 1, 3]
    assert [row["license"] for row in found] == [None, "cc-by-4.0", None]
    assert all(row["warc"] == "w" and row["url"] == f"https://a.org/{row['id']}" for row in found)
