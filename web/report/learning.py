"""What a stage of training went through: curves, samples on the way, and what reinforcement changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from pipeline.artifact import RunArtifacts
from web.charts import Level, Point, Series, line_chart
from web.words import facts, percent, shown

EACH_STEP = ("loss", "reward")  # measured at each step: noise around what is measured now and then


def points(rows: Iterable[dict[str, Any]], key: str) -> list[Point]:
    """(step, value) of the rows that have one."""
    return [(float(row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), (int, float))]


def chart(
    rows: list[dict[str, Any]],
    title: str,
    y_label: str,
    lines: dict[str, str],
    levels: dict[str, Any] | None = None,
    unit: str = "number",
) -> Markup:
    """A chart over steps of the lines (name to the key of its value) that the rows hold.

    What is measured at each step is noise around what is measured now and then: it is drawn faint.
    """
    drawn = {name: points(rows, key) for name, key in lines.items()}
    alone = sum(map(bool, drawn.values())) < 2
    series = [Series(name, drawn[name], faint=key in EACH_STEP and not alone) for name, key in lines.items()]
    known = [Level(name, float(y)) for name, y in (levels or {}).items() if isinstance(y, (int, float))]
    return line_chart(title, "step", y_label, series, known, unit)


def numbers(run: RunArtifacts, stage: str) -> list[tuple[str, str]]:
    """All plain numbers of a stage's manifest, named as people read."""
    if stage not in run.artifacts:
        return []
    plain = run.artifacts[stage].content.numbers.items()
    return facts({name.replace("_", " "): value for name, value in plain if isinstance(value, (int, float))})


def compression(run: RunArtifacts) -> list[tuple[str, str]]:
    """Bytes a training token stands for."""
    size, tokens = run.number("shard", "train_bytes"), run.number("shard", "train_tokens")
    return facts({"train bytes per token": size / tokens if size and tokens else None})


def loss_section(run: RunArtifacts, stage: str) -> dict[str, Any]:
    """Charts and facts of pretraining or fine-tuning."""
    rows = run.rows(stage, "metrics.jsonl")
    tables = {
        "unigram table": run.number(stage, "unigram_bits_per_byte"),
        "bigram table": run.number(stage, "bigram_bits_per_byte"),
    }
    charts = [
        chart(rows, "Loss", "nats a token", {"each step": "loss", "held out": "validation_loss"}),
        chart(rows, "Held-out text", "bits a byte, lower is better", {"model": "bits_per_byte"}, tables),
    ]
    return {
        "charts": [c for c in charts if c],
        "facts": dropped(run, stage) + numbers(run, stage),
        "samples": learning(run, stage),
        "learned": "",
    }


def reinforcement(run: RunArtifacts) -> dict[str, Any]:
    """Charts of the reinforcement, and what they say in a sentence."""
    rows = run.rows("rl", "metrics.jsonl")
    lines = {"training questions": "reward", "unseen, sampled": "sampled_accuracy", "unseen, greedy": "greedy_accuracy"}
    charts = [
        chart(rows, "Accuracy", "of answers", lines, unit="share"),
        chart(rows, "Calls of the calculator", "of answers", {"answers with a call": "tool_rate"}, unit="share"),
        chart(rows, "Length of an answer", "tokens", {"length": "length"}),
        chart(
            rows, "Groups that teach", "of questions, answers not all alike", {"groups": "telling_groups"}, unit="share"
        ),
    ]
    return {"charts": [c for c in charts if c], "facts": numbers(run, "rl"), "samples": [], "learned": learned(run)}


def learned(run: RunArtifacts) -> str:
    """What reinforcement changed, from the evaluations before and after; said plainly where it changed nothing.

    A change within two standard errors of the difference of two shares is called no change.
    """
    told = []
    for how in ("sampled", "greedy"):
        before, after = accuracy(run, "sft", how), accuracy(run, "rl", how)
        if before is None or after is None:
            continue
        asked = run.number("evaluation-rl", "questions")
        noise = 2 * ((before * (1 - before) + after * (1 - after)) / asked) ** 0.5 if asked else 0.0
        change = f"from {percent(before)} to {percent(after)}"
        if abs(after - before) <= noise:
            told.append(f"{how} answers did not change beyond chance ({change})")
        else:
            told.append(f"{how} answers got {'better' if after > before else 'worse'}, {change}")
    if not told:
        return ""
    for key, text, form in (
        ("tool_rate", "the calculator is called in {} of answers, {} before", percent),
        ("answer_length", "an answer takes {} tokens, {} before", shown),
    ):
        before, after = run.number("evaluation-sft", key), run.number("evaluation-rl", key)
        if before is not None and after is not None:
            told.append(text.format(form(after), form(before)))
    return f"On arithmetic questions that no stage has seen, {'; '.join(told)}."


def accuracy(run: RunArtifacts, model: str, how: str = "sampled") -> float | None:
    """Share of unseen arithmetic questions that a model answers right: `sampled`, or `greedy`."""
    value = run.number(f"evaluation-{model}", f"{how}_accuracy")
    return float(value) if isinstance(value, (int, float)) else None


def learning(run: RunArtifacts, stage: str) -> list[dict[str, Any]]:
    """For each prompt its first, middle and last continuation while the model learned."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in run.rows(stage, "samples.jsonl"):
        by_prompt.setdefault(row["prompt"], []).append(row)
    return [
        {"prompt": prompt, "rows": [rows[i] for i in sorted({0, len(rows) // 2, len(rows) - 1})]}
        for prompt, rows in by_prompt.items()
    ]


def dropped(run: RunArtifacts, stage: str) -> list[tuple[str, str]]:
    """What a stage that counts no pages (conversations) took and left."""
    counts = run.artifacts[stage].content.counts if stage in run.artifacts else None
    if counts is None:
        return []
    lost = {f"left out: {reason.replace('_', ' ')}": count for reason, count in sorted(counts.dropped.items())}
    return facts({"conversations": counts.in_, "used": counts.kept} | lost)
