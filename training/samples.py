"""Continuations of the same prompts while a model learns, step by step, of a run that has ended or is under way.

    python -m training.samples --root .crawl2chat/data [--run …] [--prompt The]

Pretraining writes them at every evaluation; of a run under way this shows those written so far.
"""

from __future__ import annotations

import argparse
import json

from pipeline import artifact, errors
from pipeline.errors import ArtifactError
from pipeline.storage import Storage
from pipeline.terminal import show

SAMPLES = "samples.jsonl"


def read(storage: Storage, run: str) -> list[dict[str, str]]:
    """Rows of `step`, `prompt`, `text` of the run's pretraining: from its artifact, or while it runs from its work."""
    pointer = artifact.pointer(storage, run, "pretrain")
    if pointer is None:
        raise ArtifactError(f"pretrain has not run in run {run!r} below {storage.root}", "name another --run")
    name = f"{pointer.folder if pointer.finished else pointer.work}/{SAMPLES}"
    if not storage.exists(name):
        raise ArtifactError(
            f"{storage.path(name)} does not exist: pretraining writes it at its first evaluation",
            "wait until pretrain.evaluate_every steps are done",
        )
    # `splitlines` would cut at U+2028 inside a text.
    return [json.loads(line) for line in storage.read(name).decode().split("\n") if line]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--run", help="name of the run; default: the one whose pretraining began last")
    parser.add_argument("--prompt", action="append", help="show this one only (repeatable); default: all")
    options = parser.parse_args()
    storage = Storage(options.root)
    if not (runs := [options.run] if options.run else artifact.runs_with(storage, "pretrain", running=True)):
        raise ArtifactError(f"no run below {storage.root} has begun pretrain", "run pretrain first")
    run = artifact.run_name(runs[-1])
    rows = read(storage, run)
    show([f"run {run}"])
    for prompt in dict.fromkeys(row["prompt"] for row in rows):
        if options.prompt is None or prompt in options.prompt:
            print(f"{prompt!r}")
            for row in rows:
                if row["prompt"] == prompt:
                    show([f"{row['step']:>8}  {json.dumps(row['text'], ensure_ascii=False)[1:-1]}"])


if __name__ == "__main__":
    errors.run(main)
