"""The report of a run: one HTML file that says what came in, what stayed, what was learned, and from what.

    python -m web.report --root .crawl2chat/data --run demo [--force]

It needs no network and runs no script. What a run has not made is shown as not run. Page text is hostile input: it is
escaped, isolated in its direction, and its addresses are shown, not linked.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from pipeline import artifact, errors
from pipeline.artifact import Pointer, Published, Stage
from pipeline.errors import ArtifactError
from pipeline.storage import Storage
from web import documents
from web.charts import Level, Point, Series, line_chart

STAGE = Stage("report", 2, ("jinja2", "pyarrow"))
FILE = "report.html"
PAGES = ("extract", "filter", "deduplicate", "redact", "decontaminate", "shard")  # the stages that keep or drop pages
# All stages of a run as their pointers are named, in order, and what a reader calls them.
STAGES = {
    "canary": "Canary",
    "extract": "Extract",
    "filter": "Filter",
    "deduplicate": "Deduplicate",
    "redact": "Redact",
    "decontaminate": "Decontaminate",
    "tokenizer": "Tokenizer",
    "shard": "Shard",
    "pretrain": "Pretraining",
    "evaluation-pretrain": "Evaluation of the base model",
    "sft": "Fine-tuning",
    "evaluation-sft": "Evaluation after fine-tuning",
    "rl": "Reinforcement learning",
    "evaluation-rl": "Evaluation after reinforcement",
}
EACH_STEP = ("loss", "reward")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
MODELS = {"pretrain": "Base", "sft": "Fine-tuned", "rl": "Reinforced"}


class Run:
    """What a run has made so far: its pointers, and the artifacts that are published."""

    def __init__(self, storage: Storage, name: str) -> None:
        self.storage, self.name = storage, name
        found = [file.rsplit("/", 1)[1] for file in storage.names(f"runs/{name}")]
        names = {file.removesuffix(".json") for file in found if file.endswith(".json")} - {STAGE.name}
        # A stage that this page does not know has its place in the lineage all the same.
        ordered = [*(stage for stage in STAGES if stage in names), *sorted(names - STAGES.keys())]
        self.pointers: dict[str, Pointer] = {}
        self.made: dict[str, Published] = {}
        for stage in ordered:
            pointer = artifact.pointer(storage, name, stage)
            if pointer:
                self.pointers[stage] = pointer
                if pointer.state != "running":
                    self.made[stage] = artifact.read(storage, pointer.folder)
        if not self.made:
            raise ArtifactError(
                f"run {name!r} below {storage.root} has published nothing", "name a run with --run; see runs/ there"
            )

    def number(self, stage: str, *keys: str) -> Any:
        """A number of a stage's manifest, or None; `keys` lead into nested ones."""
        value: Any = self.made[stage].content.numbers if stage in self.made else None
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def rows(self, stage: str, file: str) -> list[dict[str, Any]]:
        """The lines of a JSON-lines file of a stage, empty where there is none."""
        return [json.loads(line) for line in self._text(stage, file).splitlines()]

    def data(self, stage: str, file: str) -> dict[str, Any]:
        """A JSON file of a stage, empty where there is none."""
        found = json.loads(self._text(stage, file) or "{}")
        return found if isinstance(found, dict) else {}

    def _text(self, stage: str, file: str) -> str:
        made = self.made.get(stage)
        if made is None or not any(listed.path == file for listed in made.content.files):
            return ""
        return self.storage.read(made.file(file)).decode()


def waterfall(run: Run) -> list[dict[str, Any]]:
    """The bars from the first response to the last shard: what fell where, in counts and shares of the whole.

    Each: stage, label, count, share, and `left`, `width` (shares of the whole) of its bar; `kind` is kept or dropped.
    """
    counted = [(name, run.made[name].content.counts) for name in PAGES if name in run.made]
    stages = [(name, counts) for name, counts in counted if counts]
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
        bars.append(bar(stage, f"After {STAGES[stage].lower()}", "kept", counts.kept, 0))
    return bars


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


def facts(pairs: dict[str, Any]) -> list[tuple[str, str]]:
    """The pairs that are known, values as text."""
    return [(label, shown(value)) for label, value in pairs.items() if value is not None]


def shown(value: Any) -> str:
    """A number as people read it: 1,234,567 or 1.235; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, int) or (abs(value) >= 1000 and value == round(value)):
        return f"{value:,.0f}"
    return f"{value:,.3f}".rstrip("0").rstrip(".") if abs(value) >= 0.001 or not value else f"{value:.2e}"


def percent(share: float) -> str:
    """A share of 1 as a percentage, with a digit behind the point where it is small."""
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"


def short(count: float) -> str:
    """A large number with its unit: 1.2 M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}\N{NO-BREAK SPACE}{unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def kept_of(run: Run) -> tuple[int, int] | None:
    """(documents that stayed to the end of what has run, responses that came in)."""
    counted = [run.made[name].content.counts for name in PAGES if name in run.made]
    known = [counts for counts in counted if counts]
    return (known[-1].kept, known[0].in_) if known else None


def story(run: Run) -> str:
    """What happened, in one sentence, of what has run."""
    told = []
    pages = kept_of(run)
    if pages:
        warcs = run.number("extract", "warcs")
        source = f" in {warcs:,} WARC file{'s' * (warcs != 1)}" if warcs else ""
        told.append(
            f"of {pages[1]:,} responses{source}, {pages[0]:,} documents stayed ({percent(pages[0] / max(1, pages[1]))})"
        )
    tokens = run.number("shard", "train_tokens")
    if tokens:
        told.append(f"they became {short(tokens)} training tokens")
    bits, bigram = run.number("pretrain", "bits_per_byte"), run.number("pretrain", "bigram_bits_per_byte")
    if bits:
        size = run.number("pretrain", "parameters")
        beside = f", where a table of token pairs needs {bigram:.2f}" if bigram else ""
        told.append(
            f"a model{f' of {short(size)} parameters' if size else ''} "
            f"predicts held-out text at {bits:.2f} bits a byte{beside}"
        )
    first, last = accuracy(run, "sft"), accuracy(run, "rl")
    if last is not None:
        before = f", {percent(first)} before reinforcement" if first is not None else ""
        told.append(f"it answers {percent(last)} of the unseen arithmetic questions{before}")
    elif first is not None:
        told.append(f"fine-tuned, it answers {percent(first)} of the unseen arithmetic questions")
    text = "; ".join(told) or "nothing that can be counted has run yet"
    return f"{text[0].upper()}{text[1:]}."


def accuracy(run: Run, model: str, how: str = "sampled") -> float | None:
    """Share of unseen arithmetic questions that a model answers right: `sampled`, or `greedy`."""
    value = run.number(f"evaluation-{model}", f"{how}_accuracy")
    return float(value) if isinstance(value, (int, float)) else None


def loss_section(run: Run, stage: str) -> dict[str, Any]:
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


def reinforcement(run: Run) -> dict[str, Any]:
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


def learned(run: Run) -> str:
    """What reinforcement changed, from the evaluations before and after; said plainly where it changed nothing.

    A change within two standard errors of the difference of two shares is called no change.
    """
    told = []
    for how in ("sampled", "greedy"):
        before, after = accuracy(run, "sft", how), accuracy(run, "rl", how)
        if before is None or after is None:
            continue
        asked = run.made["evaluation-rl"].content.recipe.get("arithmetic", 0)
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


def models(run: Run) -> dict[str, Any]:
    """The same prompts to the base, the fine-tuned and the reinforced model, side by side."""
    results = {name: run.data(f"evaluation-{name}", "results.json") for name in MODELS}
    results = {name: found for name, found in results.items() if found}

    def table(key: str) -> list[dict[str, Any]]:
        texts = {name: _texts(found.get(key)) for name, found in results.items()}
        prompts = dict.fromkeys(prompt for answers in texts.values() for prompt in answers)
        return [
            {"prompt": prompt, "answers": [(MODELS[name], texts[name].get(prompt)) for name in results]}
            for prompt in prompts
        ]

    rates = [
        (name.replace("_", " "), [rate(name, run.number(f"evaluation-{model}", name)) for model in results])
        for name in dict.fromkeys(
            key
            for model in results
            for key, value in run.made[f"evaluation-{model}"].content.numbers.items()
            if isinstance(value, (int, float))
        )
    ]
    return {
        "names": [MODELS[name] for name in results],
        "rates": rates,
        "continuations": table("continuations"),
        "chats": table("chats"),
        "identity": table("identity"),
    }


def rate(name: str, value: Any) -> str:
    """A measured number as text: shares as percentages."""
    if value is None:
        return "–"
    return percent(value) if name.endswith(("_accuracy", "_rate", "_said")) else shown(value)


def _texts(rows: Any) -> dict[str, str]:
    """Prompt to answer, of continuations (prompt, text) or conversations (user, assistant)."""
    pairs = [(row.get("prompt", row.get("user")), row.get("text", row.get("assistant"))) for row in rows or []]
    return {str(prompt): str(answer) for prompt, answer in pairs if answer is not None}


def numbers(run: Run, stage: str) -> list[tuple[str, str]]:
    """All plain numbers of a stage's manifest, named as people read."""
    if stage not in run.made:
        return []
    plain = run.made[stage].content.numbers.items()
    return facts({name.replace("_", " "): value for name, value in plain if isinstance(value, (int, float))})


def compression(run: Run) -> list[tuple[str, str]]:
    """Bytes a training token stands for."""
    size, tokens = run.number("shard", "train_bytes"), run.number("shard", "train_tokens")
    return facts({"train bytes per token": size / tokens if size and tokens else None})


def learning(run: Run, stage: str) -> list[dict[str, Any]]:
    """For each prompt its first, middle and last continuation while the model learned."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in run.rows(stage, "samples.jsonl"):
        by_prompt.setdefault(row["prompt"], []).append(row)
    return [
        {"prompt": prompt, "rows": [rows[i] for i in sorted({0, len(rows) // 2, len(rows) - 1})]}
        for prompt, rows in by_prompt.items()
    ]


def lineage(run: Run) -> list[dict[str, Any]]:
    """All artifacts behind the run, in order, with what made them and what that took."""
    named = {made.folder: name for name, made in run.made.items()}
    found: dict[str, Published] = {}
    for made in run.made.values():
        for one in artifact.lineage(run.storage, made):
            found.setdefault(one.folder, one)
    chain = []
    for folder, one in found.items():
        name, content, spent = named.get(folder, one.content.stage), one.content, one.manifest.run
        chain.append(
            {
                "name": STAGES.get(name, name),
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


def when(seconds: float) -> str:
    """A time as a date in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def recipe_name(run: Run) -> str:
    """The recipe's name, from the run's `recipe.yaml` where it is there. Not checked: an old one is still a name."""
    file = f"runs/{run.name}/recipe.yaml"
    found = yaml.safe_load(run.storage.read(file)) if run.storage.exists(file) else None
    return str(found.get("name", run.name)) if isinstance(found, dict) else run.name


def dropped(run: Run, stage: str) -> list[tuple[str, str]]:
    """What a stage that counts no pages (conversations) took and left."""
    counts = run.made[stage].content.counts if stage in run.made else None
    if counts is None:
        return []
    lost = {f"left out: {reason.replace('_', ' ')}": count for reason, count in sorted(counts.dropped.items())}
    return facts({"conversations": counts.in_, "used": counts.kept} | lost)


def view(run: Run) -> dict[str, Any]:
    """All that the template shows."""
    finished = max(made.manifest.run.started + made.manifest.run.seconds for made in run.made.values())
    redactions, masked = run.number("redact", "redactions") or {}, run.number("redact", "samples") or {}
    return {
        "run": run.name,
        "recipe": recipe_name(run),
        "date": when(finished),
        "story": story(run),
        "states": [
            (name, label, run.pointers[name].state if name in run.pointers else "") for name, label in STAGES.items()
        ],
        "made": run.made,
        "bars": waterfall(run),
        "unreadable": run.number("extract", "unreadable") or [],
        "others": sorted((run.number("extract", "other_records") or {}).items()),
        "groups": documents.groups(run.made),
        "redactions": [
            (kind, count, masked.get(kind, []))
            for kind, count in sorted(redactions.items(), key=lambda item: (-item[1], item[0]))
        ],
        "redactable": run.made["redact"].content.recipe.get("kinds", []) if "redact" in run.made else [],
        "duplicates": numbers(run, "deduplicate"),
        "tokenizer": numbers(run, "tokenizer"),
        "shard": numbers(run, "shard") + compression(run),
        "pretrain": loss_section(run, "pretrain"),
        "sft": loss_section(run, "sft"),
        "rl": reinforcement(run),
        "models": models(run),
        "lineage": lineage(run),
    }


def template(name: str) -> Template:
    """A template of `web/templates`, with the filters that all share."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, short=short, duration=duration, shown=shown, plain=plain)
    return environment.get_template(name)


def render(run: Run) -> str:
    """The page."""
    return template("report.html.j2").render(view(run))


def plain(text: Any) -> str:
    """Text without control characters: HTML forbids some, and those of direction show a reader another order."""
    return _CONTROL.sub("\ufffd", str(text))


def publish(storage: Storage, run_name: str, force: bool = False) -> Published:
    """Make the report of a run from all it has published, or find the one that was made of just that."""
    run = Run(storage, artifact.run_name(run_name))
    building = artifact.open_stage(
        storage,
        run.name,
        STAGE,
        # The page bears the run's name, and says what is not finished.
        {"run": run.name, "states": {name: pointer.state == "running" for name, pointer in run.pointers.items()}},
        0,
        [made.as_input() for made in run.made.values()],
        force=force,
    )
    if isinstance(building, Published):
        return building
    storage.write(building.file(FILE), render(run).encode())
    return building.publish([artifact.describe(storage, building.pointer.folder, FILE, rows=len(run.made))])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder or s3:// URI below which artifacts lie")
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument("--force", action="store_true", help="make it again")
    options = parser.parse_args()
    made = publish(Storage(options.root), options.run, options.force)
    print(made.storage.path(made.file(FILE)), flush=True)


if __name__ == "__main__":
    errors.run(main)
