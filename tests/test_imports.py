"""Who may import whom, names that would hide a module from a script, and the size of files and functions."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each room may import only what stands left of it in the row pipeline, tokenizer, inference, evaluation, training; jobs
# stand beside that row, web above all of them but dags.
MAY = {
    "pipeline": set[str](),
    "tokenizer": {"pipeline"},
    "inference": {"pipeline", "tokenizer"},
    "evaluation": {"pipeline", "tokenizer", "inference"},
    "training": {"pipeline", "tokenizer", "inference", "evaluation"},
    "jobs": {"pipeline", "tokenizer"},
    "web": {"pipeline", "tokenizer", "inference", "evaluation", "training", "jobs", "local"},
    "dags": {"pipeline"},
    "local": {"pipeline"},
}
FILES = [file for room in MAY for file in sorted((ROOT / room).rglob("*.py"))]
SCRIPTS = ("jobs", "evaluation", "training")  # rooms whose files spark-submit, deepspeed or torchrun start
# Airflow parses the DAG files again and again, and starts each task, in processes that need none of these.
HEAVY = {"pyspark", "torch", "deepspeed", "transformers", "trafilatura", "fasttext"}
MOST_LINES, MEDIAN_LINES, FUNCTION_LINES = 400, 110, 60


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
    assert {file.relative_to(ROOT).parts[0] for file in FILES} == MAY.keys()


def test_rooms_import_only_what_they_may() -> None:
    for file in FILES:
        room = file.relative_to(ROOT).parts[0]
        ours = (top(imports(file)) & MAY.keys()) - {room}
        assert ours <= MAY[room], f"{label(file)} imports {sorted(ours - MAY[room])}"
        assert not top(imports(file)) & {"tests", "bench"}, label(file)


def test_stages_of_the_corpus_do_not_import_each_other() -> None:
    """But for the canary, whose parts are extract's."""
    stages = {f"jobs.{file.stem}" for file in (ROOT / "jobs").glob("*.py")} - {"jobs.__init__"}
    for file in (ROOT / "jobs").glob("*.py"):
        others = {name for name in stages if any(f"{one}.".startswith(f"{name}.") for one in imports(file))}
        assert others <= ({"jobs.extract"} if file.stem == "canary" else set()), label(file)


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = {module(file): file for file in FILES}
    edges = {name: {found for one in imports(file) if (found := known(one, modules))} for name, file in modules.items()}
    done: set[str] = set()

    def visit(name: str, road: list[str]) -> None:
        assert name not in road, " -> ".join([*road, name])
        if name not in done:
            for other in edges[name] - {name}:
                visit(other, [*road, name])
            done.add(name)

    for name in modules:
        visit(name, [])


def module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def known(name: str, modules: dict[str, Path]) -> str | None:
    """The module of ours that `from a import b`, as `a.b`, imports."""
    return name if name in modules else parent if (parent := name.rpartition(".")[0]) in modules else None


def test_one_page_knows_nothing_of_spark() -> None:
    for file in sorted((ROOT / "jobs" / "page").rglob("*.py")):
        names = imports(file)
        assert "pyspark" not in top(names), label(file)
        ours = {name for name in names if name.startswith("jobs.") and not name.startswith("jobs.page")}
        assert ours <= {"jobs.archive.response.Capture"}, f"{label(file)} reaches out of jobs/page: {sorted(ours)}"


def test_dags_are_light() -> None:
    for file in (ROOT / "dags").rglob("*.py"):
        assert not top(imports(file)) & HEAVY, label(file)


def test_only_jobs_know_spark_and_only_training_knows_deepspeed() -> None:
    for file in FILES:
        room, names = file.relative_to(ROOT).parts[0], top(imports(file))
        assert "pyspark" not in names or room == "jobs", label(file)
        assert "deepspeed" not in names or room == "training", label(file)


def test_web_inference_and_evaluation_run_where_deepspeed_is_not_installed() -> None:
    """Their modules are imported in a process in which deepspeed, and with web torch too, cannot be."""
    for rooms, absent in ((("inference", "evaluation"), ["deepspeed"]), (("web",), ["deepspeed", "torch"])):
        names = [module(file) for file in FILES if file.relative_to(ROOT).parts[0] in rooms and file.stem != "__main__"]
        code = (
            "import importlib, sys\n"
            f"sys.modules.update(dict.fromkeys({absent!r}))\n"
            f"for name in {names!r}: importlib.import_module(name)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", SCRIPTS)
def test_no_script_hides_a_module(room: str) -> None:
    """The folder of a script comes first on its path: `tokenize.py` there would be everybody's `tokenize`.

    Every file and every folder in it counts, not the entry points alone: a folder is a package to whoever imports it.
    """
    taken = set(sys.stdlib_module_names) | packages_distributions().keys() | MAY.keys()
    # cron_descriptor's build scripts, which its wheel installs by mistake and nobody imports.
    taken -= {"tools"}
    for path in (ROOT / room).iterdir():
        if path.name in ("__init__.py", "__pycache__") or path.suffix not in (".py", ""):
            continue
        assert path.stem not in taken, f"{label(path)} hides the module {path.stem!r}"


def sources(*folders: str) -> list[Path]:
    return [file for folder in folders for file in (ROOT / folder).rglob("*.py")]


def test_files_are_short() -> None:
    everywhere = sources(*MAY, "bench", "docker", "tests")
    long = {label(file): count for file in everywhere if (count := len(file.read_text().splitlines())) > MOST_LINES}
    assert not long
    counts = [len(file.read_text().splitlines()) for file in FILES if file.stem != "__init__"]
    assert statistics.median(counts) <= MEDIAN_LINES


def test_functions_are_short() -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = {}
    for file in sources(*MAY, "bench", "docker", "tests"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, kinds) and (count := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES:
                long[f"{label(file)}:{node.lineno} {node.name}"] = count
    assert not long
