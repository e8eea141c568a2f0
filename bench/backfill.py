"""Backfills twenty small crawls through Airflow, twice: `make bench-backfill`.

    python -m bench.backfill [--crawls 20] [--pages 25]

A server on this machine serves crawls of a few pages of the sample, in Common Crawl's layout. The DAG `backfill` starts
a run of `corpus` for each; then it is triggered again, and must reuse everything. Meanwhile the calls of Airflow's REST
API that its pages make are timed: people look at runs while a backfill is under way. Prints Markdown.
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

from bench.folders import HOME
from local.airflow import Installation, standalone
from local.client import Airflow
from pipeline import artifact
from pipeline.stages import CANARY, CORPUS
from pipeline.storage import Storage

STAGES = tuple(step.name for step in (CANARY, *CORPUS))
# What Airflow's pages of a DAG and of its runs request.
CALLS = ("dags", "dags/corpus/dagRuns?limit=50&order_by=-run_after", "monitor/health", "assets/events?limit=50")
# 25 pages leave few documents: a larger share fills the validation split, a smaller vocabulary can be learned.
FORM = {"shard.validation": 0.3, "tokenizer.vocabulary": 1024}
TIMEOUT_SECONDS = 3600.0  # after which a backfill counts as hanging
POLL_SECONDS = 2.0  # between two rounds of calls


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass  # no line per request between the rows of the table


def responses(file: Path) -> Iterator[bytes]:
    """The responses of a WARC file, each as the bytes of its gzip member."""
    with file.open("rb") as stream:
        records = ArchiveIterator(stream)
        spans = []
        for record in records:
            record_type = record.rec_type
            record.content_stream().read()  # the length is known once the record is read to its end
            spans.append((record_type, records.get_record_offset(), records.get_record_length()))
    data = file.read_bytes()
    yield from (data[start : start + length] for record_type, start, length in spans if record_type == "response")


@contextmanager
def served(folder: Path, crawls: int, pages: int) -> Iterator[list[str]]:
    """Ids of crawls with `pages` pages each, which a server on this machine serves until the block ends."""
    # 1. Write the crawls in Common Crawl's layout. No real crawl is of the year 2099.
    sample = [page for file in sorted((HOME / "tests/data/sample").glob("*.warc.gz")) for page in responses(file)]
    ids = [f"CC-MAIN-2099-{number:02d}" for number in range(1, crawls + 1)]
    for number, crawl in enumerate(ids):
        path = f"crawl-data/{crawl}/segments/1/warc/{crawl}-00000.warc.gz"
        (folder / path).parent.mkdir(parents=True)
        chosen = [sample[(number * pages + i) % len(sample)] for i in range(pages)]
        (folder / path).write_bytes(b"".join(chosen))
        (folder / f"crawl-data/{crawl}/warc.paths.gz").write_bytes(gzip.compress(f"{path}\n".encode()))
    # 2. Serve them. Airflow's processes, started within the block, inherit the variable that names the server.
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
    """What was measured of a backfill."""

    states: dict[str, str]  # of its runs of `corpus`, by crawl
    seconds: float
    calls: dict[str, list[float]] = field(default_factory=dict)  # seconds of each call made meanwhile, by path
    failed: dict[str, int] = field(default_factory=dict)  # how many of them ended with an error, by path


def backfill(airflow: Airflow, root: str, run: str, crawls: list[str]) -> Backfill:
    """Trigger a backfill, wait until it ends, and time calls meanwhile. Raises `TimeoutError`."""
    airflow.trigger("backfill", run, {"crawls": crawls, "root": root, **FORM})
    began = time.monotonic()
    calls: dict[str, list[float]] = {call.partition("?")[0]: [] for call in CALLS}
    failed: dict[str, int] = {}
    while airflow.state("backfill", run) not in ("success", "failed"):
        if time.monotonic() - began > TIMEOUT_SECONDS:
            raise TimeoutError(
                f"backfill {run!r} has not ended after {TIMEOUT_SECONDS:.0f} s: its task logs say where it hangs"
            )
        for call in CALLS:
            sent = time.monotonic()
            response, name = airflow.call("GET", call), call.partition("?")[0]
            calls[name].append(time.monotonic() - sent)
            failed[name] = failed.get(name, 0) + response.is_error
        time.sleep(POLL_SECONDS)
    states = {crawl: airflow.state("corpus", f"{run}__{crawl}") for crawl in crawls}
    return Backfill(states, time.monotonic() - began, calls, failed)


def stage_states(root: str, run: str, crawls: list[str]) -> dict[str, int]:
    """Number of stages of these runs by state: published, reused, and where a run failed also running or missing."""
    storage, states = Storage(root), {"published": 0, "reused": 0}
    for crawl in crawls:
        for stage in STAGES:
            pointer = artifact.pointer(storage, artifact.run_name(f"{run}__{crawl}"), stage)
            state = pointer.state if pointer else "missing"
            states[state] = states.get(state, 0) + 1
    return states


def attempts(root: str) -> int:
    """Attempts of all stages below this root but the report, which each run makes anew."""
    names = Storage(root).names("_work")
    return sum("/attempts/" in name and not name.startswith("_work/report/") for name in names)


def print_backfill(run: str, result: Backfill, root: str, database: Path) -> None:
    """Print the first table's row of a backfill."""
    states = stage_states(root, run, list(result.states))
    succeeded = list(result.states.values()).count("success")
    print(
        f"| {run} | {succeeded} of {len(result.states)} | {result.seconds / 60:.1f} | {states['published']} "
        f"| {states['reused']} | {attempts(root)} | {database.stat().st_size / 1e6:.1f} |",
        flush=True,
    )


def print_calls(backfills: list[Backfill]) -> None:
    """Print the second table: the seconds of the calls, of all backfills together."""
    print("\n| call | number | median, s | 95th percentile, s | longest, s | failed |")
    print("|---|---|---|---|---|---|")
    for call in backfills[0].calls:
        seconds = sorted(second for result in backfills for second in result.calls[call])
        failed = sum(result.failed.get(call, 0) for result in backfills)
        print(
            f"| {call} | {len(seconds)} | {statistics.median(seconds):.2f} | {seconds[int(0.95 * len(seconds))]:.2f} "
            f"| {seconds[-1]:.2f} | {failed} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crawls", type=int, default=20)
    parser.add_argument("--pages", type=int, default=25, help="per crawl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, root = Path(name), f"{name}/data"
        (folder / "www").mkdir()
        installation = Installation(HOME, root, 8480, folder / "airflow")
        with (
            served(folder / "www", options.crawls, options.pages) as crawls,
            standalone(installation, print, ("backfill", "corpus")) as airflow,
        ):
            print(f"\n{datetime.date.today()}, {len(crawls)} crawls of {options.pages} pages, {os.cpu_count()} cores\n")
            print("| | succeeded | minutes | stages published | reused | attempts so far | database, MB |")
            print("|---|---|---|---|---|---|---|")
            backfills = []
            for run in ("first", "second"):
                backfills.append(backfill(airflow, root, run, crawls))
                print_backfill(run, backfills[-1], root, installation.state / "airflow.db")
            print_calls(backfills)


if __name__ == "__main__":
    main()
