"""Twenty small crawls backfilled through Airflow, and once more: `make bench-backfill`.

    python -m bench.backfill [--crawls 20] [--pages 25]

A server on this machine serves crawls of a few pages of the sample, in Common Crawl's layout. The DAG `backfill` makes
a run of `corpus` for each; then it is triggered again, which must make nothing. While both go, the calls of Airflow's
interface are timed. Prints Markdown.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from warcio.archiveiterator import ArchiveIterator

from local.airflow import Installation, standalone
from local.client import Airflow
from pipeline import artifact
from pipeline.stages import CANARY, CORPUS
from pipeline.storage import Storage

HOME = Path(__file__).resolve().parents[1]
STAGES = tuple(step.name for step in (CANARY, *CORPUS))
# As the pages of a DAG and of its runs ask them.
CALLS = ("dags", "dags/corpus/dagRuns?limit=50&order_by=-run_after", "monitor/health", "assets/events?limit=50")
FORM = {"shard.validation": 0.3, "tokenizer.vocabulary": 1024}  # so that few documents suffice
SECONDS = 3600.0


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def responses(file: Path) -> Iterator[bytes]:
    """The bytes of the gzip members of a WARC file that hold responses."""
    with file.open("rb") as stream:
        records = ArchiveIterator(stream)
        spans = []
        for record in records:
            kind = record.rec_type
            record.content_stream().read()
            spans.append((kind, records.get_record_offset(), records.get_record_length()))
    data = file.read_bytes()
    yield from (data[start : start + length] for kind, start, length in spans if kind == "response")


@contextmanager
def served(folder: Path, crawls: int, pages: int) -> Iterator[list[str]]:
    """Ids of crawls of so many pages each, which a server on this machine holds while the block lasts."""
    found = [one for file in sorted((HOME / "tests/data/sample").glob("*.warc.gz")) for one in responses(file)]
    ids = [f"CC-MAIN-2099-{number:02d}" for number in range(1, crawls + 1)]
    for number, crawl in enumerate(ids):
        path = f"crawl-data/{crawl}/segments/1/warc/{crawl}-00000.warc.gz"
        (folder / path).parent.mkdir(parents=True)
        chosen = [found[(number * pages + i) % len(found)] for i in range(pages)]
        (folder / path).write_bytes(b"".join(chosen))
        (folder / f"crawl-data/{crawl}/warc.paths.gz").write_bytes(gzip.compress(f"{path}\n".encode()))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["CRAWL2CHAT_CC_BASE"] = f"http://127.0.0.1:{server.server_port}"
    try:
        yield ids
    finally:
        server.shutdown()
        server.server_close()
        del os.environ["CRAWL2CHAT_CC_BASE"]


@dataclass
class Backfill:
    """How a backfill went: states of its runs of `corpus`, seconds of it and of calls made meanwhile."""

    states: dict[str, str]
    seconds: float
    calls: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)


def backfill(airflow: Airflow, root: str, run: str, crawls: list[str]) -> Backfill:
    """Trigger it, and wait for its end."""
    airflow.trigger("backfill", run, {"crawls": crawls, "root": root, **FORM})
    began = time.monotonic()
    calls: dict[str, list[float]] = {call.partition("?")[0]: [] for call in CALLS}
    failed: dict[str, int] = {}
    while airflow.state("backfill", run) not in ("success", "failed"):
        if time.monotonic() - began > SECONDS:
            raise TimeoutError(f"the backfill goes on for more than {SECONDS:.0f} s")
        for call in CALLS:
            asked = time.monotonic()
            answer, name = airflow.call("GET", call), call.partition("?")[0]
            calls[name].append(time.monotonic() - asked)
            failed[name] = failed.get(name, 0) + answer.is_error
        time.sleep(2)
    states = {crawl: airflow.state("corpus", f"{run}__{crawl}") for crawl in crawls}
    return Backfill(states, time.monotonic() - began, calls, failed)


def made(root: str, run: str, crawls: list[str]) -> dict[str, int]:
    """How many stages of these runs were made, and how many were found made already."""
    storage, states = Storage(root), {"published": 0, "reused": 0}
    for crawl in crawls:
        for stage in STAGES:
            pointer = artifact.pointer(storage, artifact.run_name(f"{run}__{crawl}"), stage)
            states[pointer.state if pointer else "missing"] += 1
    return states


def attempts(root: str) -> int:
    """How often a stage was begun below this root; a report bears its run's name, and is each run's own."""
    found = Storage(root).names("_work")
    return sum("/attempts/" in name and not name.startswith("_work/report/") for name in found)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crawls", type=int, default=20)
    parser.add_argument("--pages", type=int, default=25, help="of each crawl")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, root = Path(name), f"{name}/data"
        (folder / "www").mkdir()
        at = Installation(HOME, root, 8480, folder / "airflow")
        with (
            served(folder / "www", given.crawls, given.pages) as crawls,
            standalone(at, print, ("backfill", "corpus")) as air,
        ):
            print(f"\n{datetime.date.today()}, {given.crawls} crawls of {given.pages} pages, {os.cpu_count()} cores\n")
            print("| | succeeded | minutes | stages made | found made | stages begun, in all | database, MB |")
            print("|---|---|---|---|---|---|---|")
            slow: dict[str, list[float]] = {}
            refused: dict[str, int] = {}
            for run in ("first", "second"):
                done = backfill(air, root, run, crawls)
                count, won = made(root, run, crawls), sum(state == "success" for state in done.states.values())
                size = (at.state / "airflow.db").stat().st_size / 1e6
                print(
                    f"| {run} | {won} of {len(crawls)} | {done.seconds / 60:.1f} | {count['published']} "
                    f"| {count['reused']} | {attempts(root)} | {size:.1f} |",
                    flush=True,
                )
                for call, count_of in done.failed.items():
                    refused[call] = refused.get(call, 0) + count_of
                for call, seconds in done.calls.items():
                    slow.setdefault(call, []).extend(seconds)
            print("\n| call of the interface | times | median, s | 95 of 100 below, s | longest, s | failed |")
            print("|---|---|---|---|---|---|")
            for call, seconds in slow.items():
                worst = sorted(seconds)
                print(
                    f"| {call} | {len(worst)} | {statistics.median(worst):.2f} | {worst[int(0.95 * len(worst))]:.2f} "
                    f"| {worst[-1]:.2f} | {refused.get(call, 0)} |"
                )


if __name__ == "__main__":
    main()
