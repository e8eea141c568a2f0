"""What happened, in one sentence."""

from __future__ import annotations

from pipeline.artifact import RunArtifacts
from pipeline.numbers import asked_tasks
from pipeline.stages import EVALUATIONS
from web.report.learning import accuracy
from web.report.waterfall import kept_of
from web.words import percent, short


def story(run: RunArtifacts) -> str:
    """What happened, in one sentence, of what has run."""
    clauses = []
    pages = kept_of(run)
    if pages:
        warcs = run.number("extract", "warcs")
        source = f" in {warcs:,} WARC file{'s' * (warcs != 1)}" if warcs else ""
        clauses.append(
            f"of {pages[1]:,} responses{source}, {pages[0]:,} documents stayed ({percent(pages[0] / max(1, pages[1]))})"
        )
    tokens = run.number("shard", "train_tokens")
    if tokens:
        clauses.append(f"they became {short(tokens)} training tokens")
    bits, bigram = run.number("pretrain", "bits_per_byte"), run.number("pretrain", "bigram_bits_per_byte")
    if bits:
        size = run.number("pretrain", "parameters")
        beside = f", where a table of token pairs needs {bigram:.2f}" if bigram else ""
        clauses.append(
            f"a model{f' of {short(size)} parameters' if size else ''} "
            f"predicts held-out text at {bits:.2f} bits per byte{beside}"
        )
    tasks = [name for model in ("rl", "sft") for name in asked_tasks(run.number(EVALUATIONS[model].name))]
    for task in dict.fromkeys(tasks):
        first, last = accuracy(run, "sft", task), accuracy(run, "rl", task)
        if last is not None:
            before = f", {percent(first)} before reinforcement" if first is not None else ""
            clauses.append(f"it answers {percent(last)} of the unseen {task} questions{before}")
        elif first is not None:
            clauses.append(f"fine-tuned, it answers {percent(first)} of the unseen {task} questions")
    text = "; ".join(clauses) or "nothing that can be counted has run yet"
    return f"{text[0].upper()}{text[1:]}."
