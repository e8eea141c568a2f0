"""Train a quality classifier, on texts of the wanted kind and on others.

    python jobs/train_quality.py --good good.jsonl --other crawl.jsonl --output quality.bin

Files are JSON lines with a `text`, or plain text with one document per line, gzipped or not. One document in ten is
held out, by a hash of its text; the model's scores on those are printed. Then set `extract.quality_model` to the output
and `filter.min_quality` to a threshold. Filtering again with another threshold takes seconds.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import xxhash

from jobs.page import classifier
from pipeline import errors, lines
from pipeline.errors import InputError

HELD_OUT = 10  # one document in so many is not trained on
THRESHOLDS = (0.1, 0.25, 0.5, 0.75, 0.9)  # for which the effect is printed


def texts(file: str) -> Iterator[str]:
    """The texts of a file. Raises `InputError` with file and line for a line without one."""
    for number, line in lines.read(file, "name a JSON-lines or a text file"):
        if not lines.is_json(file):
            yield line
            continue
        row = lines.parsed(file, number, line)
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InputError(f"{file}:{number}: no JSON object with a text", 'a line is {"text": "…"}')
        yield row["text"]


def held_out(text: str) -> bool:
    """Whether a document is held out from training, by a hash of its text."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "replace")) % HELD_OUT == 0


def quality(scores: Sequence[tuple[float, bool]]) -> float:
    """Area under the ROC curve: how often a good document scores above one of the others (ties count half)."""
    good, other = ([score for score, is_good in scores if is_good is wanted] for wanted in (True, False))
    above = sum((a > b) + 0.5 * (a == b) for a in good for b in other)
    return above / max(1, len(good) * len(other))


def run(good: Sequence[str], other: Sequence[str], output: Path) -> list[tuple[float, bool]]:
    """Train and write the model. Returns (score, whether it is good) of each held-out document."""
    labelled = [(text, wanted) for files, wanted in ((good, True), (other, False)) for f in files for text in texts(f)]
    labelled = sorted(dict(labelled).items())  # the order of files does not matter, and a text counts once
    random.Random(1).shuffle(labelled)  # fastText sees them in this order
    training = [pair for pair in labelled if not held_out(pair[0])]
    if len({wanted for _, wanted in training}) < 2:
        raise InputError("one of the two classes has no text to train on", "name texts of both kinds")
    with tempfile.TemporaryDirectory() as scratch:
        model = classifier.train(training, Path(scratch))
    model.save_model(str(output))
    return [(classifier.score(text, model), wanted) for text, wanted in labelled if held_out(text)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--good", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--other", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    scores = run(options.good, options.other, options.output)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")
    print(f"held out: {len(scores)} documents, area under the ROC curve {quality(scores):.3f}")
    for threshold in THRESHOLDS:
        kept = [wanted for score, wanted in scores if score >= threshold]
        good = sum(wanted for _, wanted in scores)
        print(f"  at {threshold:<5} {len(kept):>6} are kept, among them {sum(kept)} of {good} good ones")


if __name__ == "__main__":
    errors.run(main)
