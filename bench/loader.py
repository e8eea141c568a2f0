"""The loader from a million to ten billion tokens: `make bench-loader`.

    python -m bench.loader [--folder /tmp]

Sparse shards of 2^27 tokens (uint16) with an index of documents of 1,000 tokens, 20 bytes each. Each corpus size and
batch shape (the demo's, 16 x 256, and GPT-2's, 512 x 1,024) is measured three times, each time in a new process with
new files; the median counts.

- start: seconds from the manifest to the loader.
- cold: tokens per CPU second of one thread, over as many windows as the smallest corpus has, each read once, from files
  of which no page is in memory. What still sets sizes apart is how many windows share a page: page faults per window,
  counted by the kernel.
- warm: the same windows once more.
- memory: by how much the process's own has grown, and what it maps from files.
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

from pipeline.artifact import Content, Cost, File, Manifest, Published
from pipeline.storage import Storage
from tokenizer import shards

SIZES = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000)
SHARD, DOCUMENT = 1 << 27, 1_000  # tokens
SHAPES = {"16 x 256": (16, 256), "512 x 1,024": (512, 1_024)}
REPEATS = 3


def published(folder: Path, total: int) -> Published:
    """A shard artifact of so many zeros. It has no hashes, since starting a loader reads none."""
    files, dtype = [], np.dtype(np.uint16)
    for number, start in enumerate(range(0, total, SHARD)):
        tokens = min(SHARD, total - start)
        sizes = [DOCUMENT] * (tokens // DOCUMENT) + ([tokens % DOCUMENT] if tokens % DOCUMENT else [])
        path = folder / "a" / f"train-{number:05d}.bin"
        path.parent.mkdir(exist_ok=True)
        # A sparse file has a size, and no blocks: 20 GB of tokens need no disk.
        with path.open("wb") as stream:
            stream.truncate(tokens * dtype.itemsize)
        path.with_suffix(".idx").write_bytes(shards.index(sizes, dtype))
        files.append(File(path=path.name, bytes=tokens * dtype.itemsize, sha256="", rows=tokens))
    numbers = {"dtype": dtype.name, "vocabulary": 50_257, "tokenizer": ""}
    content = Content(
        schema_version=1, stage="shard", stage_version=1, partition="all", fingerprint="", seed=1, recipe={},
        libraries={}, assets={}, inputs=[], files=files, counts=None, numbers=numbers,
    )  # fmt: skip
    cost = Cost(started=0, seconds=0, cpu_seconds=0, host="", attempts=1, numbers={})
    return Published(Storage(folder), "a", Manifest(content=content, content_hash="", run=cost))


def memory() -> dict[str, float]:
    """MB of this process: its own, and mapped from files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(lines[name].split()[0]) / 1000 for name in ("RssAnon", "RssFile")}


def faults() -> int:
    """Page faults of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_minflt + used.ru_majflt


def child(folder: Path, total: int, shape: str) -> None:
    """Measure one size and shape in this process, and print the numbers as JSON."""
    # Imported here, so that the parent stays without torch.
    from training.data.loader import Loader, Stream, open_split

    shard = published(folder, total)
    batch, window = SHAPES[shape]
    steps = range(SIZES[0] // (batch * window))  # as many windows for every size, so that their figures compare
    # 1. Start.
    before, began = memory()["RssAnon"], time.perf_counter()
    loader = Loader(open_split(shard, "train", 50_257), window, 1)
    numbers: dict[str, float] = {"start": time.perf_counter() - began}
    # 2. One batch of other tokens: from now on code is loaded, while no page of the files is.
    Loader(Stream([np.zeros(batch * window + 1, np.uint16)], ""), window, 1).batch(0, batch)
    # 3. The same windows, cold and then warm.
    for name in ("cold", "warm"):
        began, faulted = time.process_time(), faults()
        for step in steps:
            loader.batch(step, batch)
        numbers[name] = len(steps) * batch * window / (time.process_time() - began)
        numbers[f"{name}_faults"] = (faults() - faulted) / (len(steps) * batch)
    print(json.dumps(numbers | {"grown": memory()["RssAnon"] - before, "mapped": memory()["RssFile"]}))


def measured(folder: Path | None, total: int, shape: str) -> dict[str, float]:
    """The numbers of one child, which has files of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        command = [sys.executable, "-m", "bench.loader", "--folder", name, "--child", str(total), "--shape", shape]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the sparse files are made; default: the temporary folder")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=list(SHAPES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:  # the hidden options start this program once more, by `measured`
        child(options.folder, options.child, options.shape)
        return
    print("| batch | tokens | start | M tokens/s, cold | warm | page faults per window, cold | memory grown | mapped |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for shape in SHAPES:
        for total in SIZES:
            runs = [measured(options.folder, total, shape) for _ in range(REPEATS)]
            row = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            print(
                f"| {shape} | {total:,} | {row['start']:.3f} s | {row['cold'] / 1e6:.1f} | {row['warm'] / 1e6:.1f} | "
                f"{row['cold_faults']:.2f} | {row['grown']:.0f} MB | {row['mapped']:.0f} MB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
