"""The loader from a million to ten billion tokens: `make bench-loader`.

    python -m bench.loader [--folder /tmp]

Sparse shards of 2^27 tokens (uint16) with an index of documents of 1,000 tokens, 20 bytes each; a process of its own
for each size and shape of a batch (the demo's, 16 x 256, and GPT-2's, 512 x 1,024), three times, of which the median
counts. Start: from the manifest to the loader. Then, on one thread, tokens a second of its CPU: cold, as many windows
as the smallest size has, each read once, of files of which no page is in memory; warm, the same windows once more. What
still sets sizes apart when cold is how many windows share a page: page faults a window, counted by the kernel. Memory:
the process' own, and what it maps from files.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
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
SHAPES = {"16 x 256": (16, 256), "512 x 1,024": (512, 1_024)}
TURNS = 3


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


def faults() -> int:
    """Page faults of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_minflt + used.ru_majflt


def child(folder: Path, total: int, shape: str) -> None:
    """Measure, and print as JSON."""
    from training.data.loader import Loader, Stream, open_split

    made = published(folder, total)
    batch, window = SHAPES[shape]
    steps = range(SIZES[0] // (batch * window))
    before, began = memory()["RssAnon"], time.perf_counter()
    loader = Loader(open_split(made, "train", 50_257), window, 1)
    found: dict[str, float] = {"start": time.perf_counter() - began}
    Loader(Stream([np.zeros(batch * window + 1, np.uint16)], ""), window, 1).batch(0, batch)  # code, not pages
    for name in ("cold", "warm"):
        began, faulted = time.process_time(), faults()
        for step in steps:
            loader.batch(step, batch)
        found[name] = len(steps) * batch * window / (time.process_time() - began)
        found[f"{name}_faults"] = (faults() - faulted) / (len(steps) * batch)
    print(json.dumps(found | {"grown": memory()["RssAnon"] - before, "mapped": memory()["RssFile"]}))


def turn(folder: Path | None, total: int, shape: str) -> dict[str, float]:
    """What a child measured, of files of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        command = [sys.executable, "-m", "bench.loader", "--folder", name, "--child", str(total), "--shape", shape]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the sparse files are made; default: the temporary folder")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=list(SHAPES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.folder, given.child, given.shape)
        return
    print("| batch | tokens | start | M tokens/s, cold | warm | page faults a window, cold | memory grown | mapped |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for shape in SHAPES:
        for total in SIZES:
            turns = [turn(given.folder, total, shape) for _ in range(TURNS)]
            row = {name: statistics.median(one[name] for one in turns) for name in turns[0]}
            print(
                f"| {shape} | {total:,} | {row['start']:.3f} s | {row['cold'] / 1e6:.1f} | {row['warm'] / 1e6:.1f} | "
                f"{row['cold_faults']:.2f} | {row['grown']:.0f} MB | {row['mapped']:.0f} MB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
