"""Who may import whom (the table of DESIGN.md), and names that would hide a module from spark-submit and deepspeed."""

from __future__ import annotations

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY = {
    "pipeline": set[str](),
    "tokenizer": {"pipeline"},
    "jobs": {"pipeline", "tokenizer"},
    "training": {"pipeline", "tokenizer"},
    "web": {"pipeline", "tokenizer", "jobs", "training", "local"},
    "dags": {"pipeline"},
    "local": {"pipeline"},
}
FILES = [file for room in MAY for file in sorted((ROOT / room).rglob("*.py"))]
# Airflow parses a DAG file every half minute, in a process that has none of these.
HEAVY = {"pyspark", "torch", "deepspeed", "transformers", "trafilatura", "fasttext"}


def imports(file: Path) -> set[str]:
    """Full names of the modules that a file imports, at its top or anywhere within."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def label(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_there_is_something_to_look_at() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in FILES} >= {"pipeline", "tokenizer", "jobs", "training", "web"}


@pytest.mark.parametrize("file", FILES, ids=label)
def test_rooms_import_only_what_they_may(file: Path) -> None:
    room = file.relative_to(ROOT).parts[0]
    ours = (top(imports(file)) & MAY.keys()) - {room}
    assert ours <= MAY[room], f"{label(file)} imports {sorted(ours - MAY[room])}"
    assert not top(imports(file)) & {"tests", "bench"}


@pytest.mark.parametrize("file", sorted((ROOT / "jobs" / "page").rglob("*.py")), ids=label)
def test_one_page_knows_nothing_of_spark(file: Path) -> None:
    names = imports(file)
    assert "pyspark" not in top(names)
    ours = {name for name in names if name.startswith("jobs.") and not name.startswith("jobs.page")}
    assert not ours, f"{label(file)} reaches out of jobs/page: {sorted(ours)}"


@pytest.mark.parametrize("file", sorted((ROOT / "dags").rglob("*.py")), ids=label)
def test_dags_are_light(file: Path) -> None:
    assert not top(imports(file)) & HEAVY


@pytest.mark.parametrize("file", sorted((ROOT / "training").rglob("*.py")), ids=label)
def test_training_knows_nothing_of_spark(file: Path) -> None:
    assert "pyspark" not in top(imports(file))


@pytest.mark.parametrize(
    "file", [file for room in ("jobs", "training") for file in sorted((ROOT / room).glob("*.py"))], ids=label
)
def test_no_script_hides_a_module(file: Path) -> None:
    """The folder of a script comes first on its path: `tokenize.py` there would be everybody's `tokenize`.

    Every file counts, not the entry points alone: all of them lie in that folder.
    """
    if file.name == "__init__.py":
        return
    taken = set(sys.stdlib_module_names) | packages_distributions().keys() | MAY.keys()
    taken -= {"tools"}  # cron_descriptor's build scripts, which its wheel installs by mistake and nobody imports
    assert file.stem not in taken, f"{label(file)} hides the module {file.stem!r}"
