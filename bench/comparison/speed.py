"""CPU seconds of both sides, and of each step of a page on ours."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.comparison.sides import RECIPE, STAGES, Bench, Variant, ours_root, table
from bench.processes import Spent
from jobs import extract
from jobs.archive import warc
from jobs.archive.response import Capture
from jobs.page import charset, extraction, guard, language, quality, urls
from pipeline.recipe import Extract, load
from pipeline.storage import Storage


def stages(bench: Bench, variants: Sequence[Variant], limit: float, repeats: int) -> str:
    """Run the stages of both sides `repeats` times. Returns tables of their CPU seconds, medians over the runs.

    `limit`: FineWeb's largest share of characters in duplicate lines.
    """
    # 1. The sides take turns, so that a slow minute of the machine slows both.
    runs: dict[str, list[Spent]] = defaultdict(list)
    for _ in range(repeats):
        shutil.rmtree(bench.theirs, ignore_errors=True)
        runs["filter"].append(bench.datatrove("filter", bench.root / "with", bench.theirs, limit))
        runs["deduplicate"].append(bench.datatrove("deduplicate", bench.theirs))
        runs["session"].append(bench.session())
        for variant in variants:
            for stage, spent in bench.ours(variant).items():
                runs[f"{variant}/{stage}"].append(spent)
    # 2. Our stages beside datatrove's. A session costs the same however many pages there are, so it is also subtracted.
    cpu = {name: statistics.median(run.cpu for run in spent) for name, spent in runs.items()}
    wall = {name: statistics.median(run.wall for run in spent) for name, spent in runs.items()}
    theirs, session = cpu["filter"] + cpu["deduplicate"], cpu["session"]
    rows: list[list[object]] = [
        ["datatrove", cpu["filter"], "", cpu["deduplicate"], "", theirs, wall["filter"] + wall["deduplicate"], "1.00"]
    ]
    for variant in variants:
        parts = [cpu[f"{variant}/{stage}"] for stage in STAGES]
        seconds = sum(wall[f"{variant}/{stage}"] for stage in STAGES)
        rows.append([f"ours, {variant}", *parts, sum(parts), seconds, f"{sum(parts) / theirs:.2f}"])
        work = [max(0.0, part - session) for part in parts]
        rows.append(["– without four empty sessions", *work, sum(work), "", f"{sum(work) / theirs:.2f}"])
    rows.append(["an empty Spark session", *[""] * 4, session, wall["session"], ""])
    head = ["CPU seconds", *STAGES, "all", "wall", "of datatrove"]
    note = "datatrove's extract holds its filters, its deduplicate the PII step. Medians where repeated.\n"
    # 3. What datatrove itself says of its steps.
    steps: list[list[object]] = []
    for stage in ("filter", "signatures", "buckets", "cluster", "unique"):
        for block in json.loads((bench.theirs / "stats" / stage / "stats.json").read_text()):
            clock, counts = block["time_stats"], block["stats"]
            total = clock["total"] if isinstance(clock, dict) else float(clock)
            drops = {name.removeprefix("dropped_"): n for name, n in counts.items() if name.startswith("dropped")}
            reasons = ", ".join(f"{'all' if name == 'dropped' else name} {n}" for name, n in drops.items())
            steps.append([f"{stage}: {block['name'].split(': ', 1)[-1]}", total, reasons])
    by_step = table(["datatrove's own timer (last run)", "seconds of all tasks", "dropped"], steps)
    return f"{table(head, rows)}\n{note}\n{by_step}"


def steps(bench: Bench, extractors: Sequence[str]) -> str:
    """CPU seconds of each step of a page, in one process without Spark, where the crawl has no language records.

    About as many pages are measured as the crawl has, however many copies of them the archives hold.
    """
    # 1. A share of the files, each of which holds all copies of its pages; and the functions to time.
    files = sorted((bench.root / "without").iterdir())
    files = files[: max(1, len(files) // bench.copies)]
    functions = {
        "block list": (urls.BlockList, "reason"),
        "charset": (charset, "decode"),
        "language gate": (language, "gate"),
        "main text and title": (extraction, "extract"),
        "fastText, the gate's too": (language, "detect"),
        "words": (extract, "words"),
        "quality scores": (quality, "scores"),
    }
    # 2. Every page of them, once per extractor, under the same limit of CPU seconds as in the guard's process.
    storage = Storage(bench.root / ours_root(Variant(True, extractors[0]), None))
    spent: dict[str, dict[str, float]] = {}
    for extractor in extractors:
        recipe = load(RECIPE, {"extract.extractor": extractor}).extract
        lists = recipe.block_list
        name = extract.block_list(storage, recipe, urls.identity(lists.source, lists.categories))
        blocked = extract.open_block_list(storage, name, urls.terms(lists))

        def read(capture: Capture, recipe: Extract = recipe) -> dict[str, Any]:
            return guard.timed(lambda: extract.read_page(recipe, None, capture), recipe.page_seconds)

        with Timer(functions) as timer:
            for file in files:
                with file.open("rb") as stream:
                    for capture in warc.captures(stream, recipe.max_html_bytes):
                        extract.page(capture, blocked, recipe, read)
        spent[extractor] = timer.spent
    rows = [[step, *(seconds[step] for seconds in spent.values())] for step in ["archive, and the rest", *functions]]
    return table(["a page's steps, CPU seconds", *spent], rows)


class Timer:
    """CPU seconds of functions of this process within the block: `functions` names owner and attribute of each.

    Each is replaced by a timed one, so only calls that look the attribute up are counted. A function that another timed
    one calls counts for itself alone.
    """

    def __init__(self, functions: Mapping[str, tuple[Any, str]]) -> None:
        self._functions = functions
        self._original = {name: getattr(*place) for name, place in functions.items()}
        self.spent: dict[str, float] = defaultdict(float)

    def __enter__(self) -> Timer:
        for name, (owner, attribute) in self._functions.items():
            setattr(owner, attribute, self._timed(name))
        self._began = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.spent["archive, and the rest"] = time.process_time() - self._began - sum(self.spent.values())
        for name, (owner, attribute) in self._functions.items():
            setattr(owner, attribute, self._original[name])

    def _timed(self, name: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began, inner = time.process_time(), sum(self.spent.values())
            try:
                return self._original[name](*arguments, **named)
            finally:  # `inner` has grown by the seconds of timed functions that this one called
                self.spent[name] += time.process_time() - began - (sum(self.spent.values()) - inner)

        return timed
