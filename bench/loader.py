"""The loader from a million to ten billion tokens: `make bench-loader`.

    python -m bench.loader [--folder /tmp]

Sparse shards of 2^27 tokens (uint16) with an index of documents of 1,000 tokens, 20 bytes each; a process of its own
for each size, files new to it. Start: from the manifest to the first batch. Tokens a second: batches of the demo (16 x
256) and of GPT-2 (512 x 1,024), one after another on one thread. Memory: the process' own, and what it maps from files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.artifact import Content, File, Manifest, Published, Run
from pipeline.storage import Storage
from tokenizer import shards

SIZES = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000)
SHARD, DOCUMENT = 1 << 27, 1_000
SHAPES = {"16 x 256": (16, 256, 2_000), "512 x 1,024": (512, 1_024, 40)}


def published(folder: Path, total: int) -> Published:
    """A shard artifact of so many zeros; hashes are left out, since starting does not read them."""
    files, dtype = [], np.dtype(np.uint16)
    for number, start in enumerate(range(0, total, SHARD)):
        tokens = min(SHARD, total - start)
        sizes = [DOCUMENT] * (tokens // DOCUMENT) + ([tokens % DOCUMENT] if tokens % DOCUMENT else [])
        path = folder / "a" / f"train-{number:05d}.bin"
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as stream:
            stream.truncate(tokens * dtype.itemsize)
        path.with_suffix(".idx").write_bytes(shards.index(sizes, dtype))
        files.append(File(path=path.name, bytes=tokens * dtype.itemsize, sha256="", rows=tokens))
    numbers = {"dtype": dtype.name, "vocabulary": 50_257, "tokenizer": ""}
    content = Content(
        schema_version=1, stage="shard", stage_version=1, partition="all", fingerprint="", seed=1, recipe={},
        libraries={}, assets={}, inputs=[], files=files, counts=None, numbers=numbers,
    )  # fmt: skip
    spent = Run(started=0, seconds=0, cpu_seconds=0, host="", attempts=1, numbers={})
    return Published(Storage(folder), "a", Manifest(content=content, content_hash="", run=spent))


def memory() -> dict[str, float]:
    """MB of this process: its own, and mapped from files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(lines[name].split()[0]) / 1000 for name in ("RssAnon", "RssFile")}


def child(folder: Path, total: int) -> None:
    """Measure, and print as JSON."""
    from training.loader import Loader, open_split

    made = published(folder, total)
    before = memory()["RssAnon"]
    started = time.perf_counter()
    stream = open_split(made, "train", 50_257)
    Loader(stream, 256, 1).batch(0, 16)
    found: dict[str, float] = {"start": time.perf_counter() - started}
    for name, (batch, window, steps) in SHAPES.items():
        loader = Loader(stream, window, 1)
        began = time.perf_counter()
        for step in range(steps):
            loader.batch(step, batch)
        found[name] = steps * batch * window / (time.perf_counter() - began)
    print(json.dumps(found | {"grown": memory()["RssAnon"] - before, "mapped": memory()["RssFile"]}))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the sparse files are made; default: the temporary folder")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.folder, given.child)
        return
    print("| tokens | start | " + " | ".join(f"M tokens/s, {name}" for name in SHAPES) + " | memory grown | mapped |")
    print("|---:|---:|---:|---:|---:|---:|")
    for total in SIZES:
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            command = [sys.executable, "-m", "bench.loader", "--folder", name, "--child", str(total)]
            row = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
        speeds = " | ".join(f"{row[shape] / 1e6:.1f}" for shape in SHAPES)
        print(
            f"| {total:,} | {row['start']:.3f} s | {speeds} | {row['grown']:.0f} MB | {row['mapped']:.0f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
