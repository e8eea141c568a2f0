"""What a stage of training went through: curves, samples on the way, and what reinforcement changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from pipeline.artifact import RunArtifacts
from pipeline.numbers import asked_tasks
from pipeline.stages import AFTER_RL, BEFORE_RL, EVALUATIONS
from web.charts import Level, Point, Series, line_chart
from web.words import facts, percent, rate

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
        chart(rows, "Loss", "nats per token", {"each step": "loss", "held out": "validation_loss"}),
        chart(rows, "Held-out text", "bits per byte, lower is better", {"model": "bits_per_byte"}, tables),
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
    tasks = dict.fromkeys(key.rpartition(".")[0] for row in rows for key in row if key.endswith("_accuracy"))
    accuracies = [
        chart(
            rows,
            f"Accuracy, {task}",
            "share of samples",
            {
                "training questions": "reward",
                "held out, sampled": f"{task}.sampled_accuracy",
                "held out, greedy": f"{task}.greedy_accuracy",
            },
            unit="share",
        )
        for task in tasks
    ]
    informative = {"groups": "informative_groups"}
    charts = [
        *accuracies,
        chart(rows, "Tool calls", "share of samples with one", {"with a call": "tool_rate"}, unit="share"),
        chart(rows, "Length of a sample", "tokens", {"length": "length"}),
        chart(rows, "Groups with differing rewards", "share of questions", informative, unit="share"),
    ]
    return {"charts": [c for c in charts if c], "facts": numbers(run, "rl"), "samples": [], "learned": learned(run)}


def learned(run: RunArtifacts) -> str:
    """What reinforcement changed, task by task, from the evaluations before and after; said plainly where nothing."""
    return " ".join(filter(None, (_learned(run, task) for task in asked_tasks(run.number(AFTER_RL.name)))))


def _learned(run: RunArtifacts, task: str) -> str:
    """A change within two standard errors of the difference of two shares is called no change."""
    clauses = []
    for how in ("sampled", "greedy"):
        before, after = accuracy(run, "sft", task, how), accuracy(run, "rl", task, how)
        if before is None or after is None:
            continue
        questions = run.measured(AFTER_RL.name, f"{task}.questions")
        noise = 2 * ((before * (1 - before) + after * (1 - after)) / questions) ** 0.5 if questions else 0.0
        change = f"from {percent(before)} to {percent(after)}"
        if abs(after - before) <= noise:
            clauses.append(f"{how} answers did not change beyond chance ({change})")
        else:
            clauses.append(f"{how} answers got {'better' if after > before else 'worse'}, {change}")
    if not clauses:
        return ""
    for key, text in (
        ("tool_rate", "a tool is called in {} of samples, {} before"),
        ("answer_length", "a sample takes {} tokens, {} before"),
    ):
        before, after = (run.measured(step.name, f"{task}.{key}") for step in (BEFORE_RL, AFTER_RL))
        if before is not None and after is not None:
            clauses.append(text.format(rate(key, after), rate(key, before)))
    return f"On {task} questions that no stage has seen, {'; '.join(clauses)}."


def accuracy(run: RunArtifacts, model: str, task: str, how: str = "sampled") -> float | None:
    """Share of a task's held-out questions that a model answers right: `sampled`, or `greedy`."""
    return run.measured(EVALUATIONS[model].name, f"{task}.{how}_accuracy")


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
