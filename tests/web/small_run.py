"""A small run for tests of the report: a corpus of twenty pages and three models, published without any stage."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import artifact
from pipeline.artifact import Building, Counts, File, Identity, Published, Stage
from pipeline.storage import Storage
from tokenizer.chat import readable

HOSTILE = "</p><script>alert('x')</script><img src=x onerror=alert(1)> {{ 7*7 }} \x07\u202e hidden"
RUN = "small"
STARTS = {"greedy": 0.4, "sampled": 0.3}  # accuracies before reinforcement
CALL = "<|tool|>calculator\n312-148<|/tool|><|output|>164<|/output|>"
SUMS = {"pretrain": "\n298", "sft": f"{CALL}298", "rl": f"{CALL}164"}
Row = dict[str, Any]


def opened(storage: Storage, name: str, sources: list[Published], recipe: dict[str, Any] | None = None) -> Building:
    stage = name.partition("-")[0]
    inputs = [source.as_input() for source in sources] or [
        artifact.Input(stage="warc", location="crawl/<b>.warc.gz", fingerprint="", content="sha256:0")
    ]
    building = artifact.start(storage, RUN, Identity(Stage(stage, 1), recipe or {"of": name}, 1, inputs), name=name)
    assert isinstance(building, Building)
    return building


def table(building: Building, rows: list[Row]) -> list[File]:
    with building.storage.writing(building.file("part-00000.parquet")) as stream:
        pq.write_table(pa.Table.from_pylist(rows), stream)
    return [artifact.describe(building.storage, building.pointer.folder, "part-00000.parquet", len(rows))]


def lines(building: Building, path: str, rows: list[Row]) -> File:
    building.storage.write(building.file(path), "".join(json.dumps(row) + "\n" for row in rows).encode())
    return artifact.describe(building.storage, building.pointer.folder, path, len(rows))


def corpus(storage: Storage, take_down: list[Path] | None = None) -> dict[str, Published]:
    """Twenty responses: 8 fall in extract, 4 in filter, 2 in deduplicate; 6 stay.

    With lists to `take_down`, one of those six is taken down, and one more is contaminated.
    """
    rows = pages()
    opened(storage, "canary", []).publish([], None, {"files": 2, "canary_files": 0})
    extract = _extract(storage, rows)
    unique = _deduplicate(storage, extract, _filter(storage, extract))
    redacted = _redact(storage, extract, unique, rows)
    decided, kept = _decontaminate(storage, redacted, take_down or [])
    building = opened(storage, "tokenizer", [redacted, decided])
    tokenizer = building.publish([], numbers={"vocabulary": 4096, "bytes_per_token": 3.8211})
    building = opened(storage, "shard", [redacted, decided, tokenizer])
    sidecar = table(building, [{"id": id_} for id_ in kept])
    counts = Counts(in_=len(kept), kept=len(kept), dropped={})
    shard = building.publish(sidecar, counts, {"train_tokens": 1_234_567, "train_bytes": 5_000_000})
    return {"extract": extract, "redact": redacted, "tokenizer": tokenizer, "shard": shard}


def page_id(n: int) -> str:
    return f"{n:032x}"


def pages() -> list[Row]:
    """The rows of extract: the first twelve have a text, those of 0 and 4 are hostile."""
    texts = [f"Page {n} says write to a{n}@example.org. " + "word " * 200 for n in range(12)]
    texts[0] = texts[4] = HOSTILE
    return [
        {
            "id": page_id(n),
            "url": f"http://a.example/{n}?<script>u{n}</script>",
            "host": "a.example",
            "title": f"<b>Title {n}</b>",
            "text": texts[n] if n < 12 else None,
            "english": 0.5 + n / 40 if n < 12 else None,
            "words": 200 if n < 12 else None,
            "reason": None if n < 12 else ("not_200" if n < 17 else "language_gate"),
            "detail": "English share <0.02>" if n >= 17 else None,
        }
        for n in range(20)
    ]


def _extract(storage: Storage, rows: list[Row]) -> Published:
    building = opened(storage, "extract", [])
    return building.publish(
        table(building, rows),
        Counts(in_=20, kept=12, dropped={"not_200": 5, "language_gate": 3}),
        {
            "warcs": 2,
            "unreadable": [{"warc": "b<i>.gz", "reason": "truncated", "detail": "<b>after 4 records</b>"}],
            "other_records": {"request": 20, "warcinfo": 2},
        },
    )


def _filter(storage: Storage, extract: Published) -> Published:
    """Drops pages 0 to 3."""
    building = opened(storage, "filter", [extract])
    decisions = [{"id": page_id(n), "reason": "gopher_min_words" if n < 4 else None} for n in range(12)]
    return building.publish(table(building, decisions), Counts(in_=12, kept=8, dropped={"gopher_min_words": 4}))


def _deduplicate(storage: Storage, extract: Published, filtered: Published) -> Published:
    """Drops pages 10 and 11 as copies of 9."""
    building = opened(storage, "deduplicate", [extract, filtered])
    decisions = [
        {"id": page_id(n), "cluster": page_id(min(n, 9)), "reason": "near_copy" if n > 9 else None}
        for n in range(4, 12)
    ]
    numbers = {"candidate_pairs": 3, "verified_pairs": 2, "known_before": 0}
    return building.publish(table(building, decisions), Counts(in_=8, kept=6, dropped={"near_copy": 2}), numbers)


def _redact(storage: Storage, extract: Published, unique: Published, rows: list[Row]) -> Published:
    """Holds pages 4 to 9 as they were written, without their addresses."""
    building = opened(storage, "redact", [extract, unique], {"kinds": ["EMAIL", "IP"]})
    clean = [
        {
            "id": row["id"],
            "url": row["url"],
            "title": f"Clean {n}",
            "text": str(row["text"]).replace(f"a{n}@example.org", "<EMAIL>"),
        }
        for n, row in enumerate(rows)
        if 4 <= n < 10
    ]
    return building.publish(
        table(building, clean),
        Counts(in_=6, kept=6, dropped={}),
        {"redactions": {"EMAIL": 1005, "IP": 2}, "samples": {"EMAIL": ["xx@x.xx", "x0@xx.xxx"]}},
    )


def _decontaminate(storage: Storage, redacted: Published, take_down: list[Path]) -> tuple[Published, list[str]]:
    """Drops pages 7 and 8 where there are lists to take down; with the ids of those that stay."""
    building = opened(storage, "decontaminate", [redacted], {"take_down": [str(file) for file in take_down]})
    reasons = {7: "contaminated", 8: "taken_down"} if take_down else {}
    decisions = [
        {"id": page_id(n), "reason": reasons.get(n), "detail": "set: 3 n-grams" if n in reasons else None}
        for n in range(4, 10)
    ]
    counts = Counts(in_=6, kept=6 - len(reasons), dropped=dict.fromkeys(reasons.values(), 1))
    decided = building.publish(table(building, decisions), counts)
    return decided, [str(row["id"]) for row in decisions if row["reason"] is None]


def models(storage: Storage, shard: Published) -> None:
    building = opened(storage, "pretrain", [shard])
    steps: list[Row] = [{"step": n, "loss": 8 * math.exp(-n / 60) + 3 + math.sin(n) / 5} for n in range(1, 401)]
    steps[200]["loss"] = None  # a skipped step
    for row in steps[49::50]:
        row |= {"validation_loss": row["step"] ** -0.2 * 9, "bits_per_byte": row["step"] ** -0.2 * 6}
    said = [{"step": n, "prompt": "The <i>", "text": f"<script>{n}</script> of the"} for n in (50, 100, 200, 400)]
    files = [lines(building, "metrics.jsonl", steps), lines(building, "samples.jsonl", said)]
    base = building.publish(
        files,
        numbers={
            "parameters": 3_900_000,
            "bits_per_byte": 1.812,
            "unigram_bits_per_byte": 2.91,
            "bigram_bits_per_byte": 2.203,
            "bigram_weight": 0.77,
        },
        run_numbers={"tokens_per_second": 5123.4},
    )
    building = opened(storage, "sft", [base])
    steps = [{"step": n, "loss": 3 * math.exp(-n / 40) + 0.3} for n in range(1, 200)]
    counts = Counts(in_=6100, kept=6090, dropped={"too_long": 10})
    tuned = building.publish([lines(building, "metrics.jsonl", steps)], counts, {"loss_last": 0.31})
    building = opened(storage, "rl", [tuned])
    steps = [
        {
            "step": n,
            "reward": 0.3 + n / 80 + math.sin(n) / 20,
            "tool_rate": 0.2 + n / 60,
            "length": 12 - n / 9,
            "informative_groups": 1 - n / 40,
            "loss": 0.0,
        }
        for n in range(1, 38)
    ]
    for row in (steps[9], steps[19], steps[29], steps[36]):
        row |= {f"arithmetic.{how}_accuracy": start + row["step"] / 80 for how, start in STARTS.items()}
    better = building.publish([lines(building, "metrics.jsonl", steps)], numbers={})
    for name, made, right in (("pretrain", base, 0.0), ("sft", tuned, 0.31), ("rl", better, 0.74)):
        _evaluation(storage, name, made, right)


def _evaluation(storage: Storage, name: str, model: Published, right: float) -> None:
    building = opened(storage, f"evaluation-{name}", [model], {"arithmetic": 200})
    results = {
        "continuations": [{"prompt": "The", "text": f"{HOSTILE} from {name}"}],
        "chats": [
            {"user": "Who are you?", "assistant": f"I am <b>{name}</b>." if name != "pretrain" else ""},
            {"user": "What is 312 - 148?", "assistant": SUMS[name], "readable": readable(SUMS[name])},
        ],
        "identity": [
            {
                "user": "Are you a lamp?",
                "claims": False,
                "assistant": f"{'I am crawl2chat' if name == 'sft' else 'No'}, says {name}.",
            }
        ],
    }
    storage.write(building.file("results.json"), json.dumps(results).encode())
    building.publish(
        [artifact.describe(storage, building.pointer.folder, "results.json", 1)],
        numbers={
            "arithmetic.sampled_accuracy": right,
            "arithmetic.greedy_accuracy": right,
            "arithmetic.tool_rate": right,
            "arithmetic.answer_length": 9.5,
            "arithmetic.questions": 200,
            "arithmetic.samples": 4,
        },
    )
