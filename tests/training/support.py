"""For the tests of the training stages: a tiny recipe, models and shards as artifacts, ranks as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from torch import nn

from inference import network
from pipeline import artifact, progress, recipe
from pipeline.artifact import Building, Identity, Published, Stage, describe
from pipeline.stages import SECTIONS
from pipeline.storage import Storage
from tokenizer import shards
from tokenizer.bpe import Tokenizer
from tokenizer.chat import PAD
from training.engine.export import export
from training.launch import processes

REPOSITORY = Path(__file__).parents[2]


def demo(window: int) -> dict[str, Any]:
    """The demo recipe as plain data, with a model a thousandth of its size."""
    data: dict[str, Any] = yaml.safe_load((REPOSITORY / "recipes" / "demo.yaml").read_text())
    data["model"] |= {"layers": 2, "width": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp_width": 64}
    data["model"]["window"] = data["pretrain"]["window"] = data["sft"]["window"] = window
    for section, name in (("rl", "max_new_tokens"), ("memorization", "prompt_tokens")):
        data[section][name] = min(data[section][name], window - 1)
    return data


def write(data: dict[str, Any], folder: Path) -> Path:
    """Write the recipe as a file and return its path."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True))
    return path


def publish(
    root: Path,
    path: Path,
    stage: str,
    tokenizer: Tokenizer,
    net: nn.Module | None = None,
    inputs: Sequence[Published] = (),
) -> Published:
    """Publish a model (without `net` an untrained one) as the artifact of `stage`, made from `inputs`."""
    chosen, storage = recipe.load(path), Storage(root)
    section = {name: chosen.section(name) for name in SECTIONS[stage]}
    read = [source.as_input() for source in inputs]
    opened = artifact.start(storage, chosen.name, Identity(Stage(stage, 1), section, chosen.seed, read), force=True)
    assert isinstance(opened, Building)
    net = net or network.build(chosen.model, tokenizer.vocabulary, tokenizer.end_of_text, tokenizer.special(PAD), 1)
    with tempfile.TemporaryDirectory() as name:
        export(net, tokenizer, Path(name))
        names = sorted(file.name for file in Path(name).iterdir())
        for file in names:
            storage.write(opened.file(file), (Path(name) / file).read_bytes())
    return opened.publish([describe(storage, opened.pointer.folder, file, 1) for file in names])


def run(stage: ModuleType, root: Path, path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """Run the stage's `main` in this process, whose process group and handler of SIGTERM stay."""
    monkeypatch.setattr(sys, "argv", [f"{stage.STAGE.name}.py", "--recipe", str(path), "--root", str(root), *options])
    before = signal.getsignal(signal.SIGTERM)
    try:
        stage.main()
    finally:
        signal.signal(signal.SIGTERM, before)


def artifact_of(root: Path, stage: str) -> Published:
    """What a stage of the run published."""
    return artifact.of_run(Storage(root), "demo", stage)


def content_hash(root: Path, stage: str) -> str:
    """Hash of all that a stage of the run published."""
    return artifact_of(root, stage).manifest.content_hash


def rows(published: Published) -> list[dict[str, Any]]:
    """The metrics of a published stage."""
    return [json.loads(line) for line in published.storage.read(published.file("metrics.jsonl")).splitlines()]


def ranks(size: int, *command: str | Path) -> list[subprocess.Popen[str]]:
    """Start `python <command>` as a launch of `size` ranks on this machine."""
    port, running = processes._free_port(), []
    for rank in range(size):
        env = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(REPOSITORY)}
        line = [sys.executable, *map(str, command)]
        running.append(subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return running


def stage_ranks(size: int, script: str, root: Path, path: Path) -> list[subprocess.Popen[str]]:
    """Start `training/<script>` for a recipe, as `ranks`."""
    return ranks(size, REPOSITORY / "training" / script, "--recipe", path, "--root", root)


def finish(running: list[subprocess.Popen[str]], code: int = 0, seconds: float = 300) -> str:
    """Wait until all ranks have ended, each with `code`; returns rank 0's output."""
    outputs = [process.communicate(timeout=seconds)[0] for process in running]
    assert [process.returncode for process in running] == [code] * len(running), "\n".join(outputs)
    return outputs[0]


def wait_for_step(root: Path, stage: str, step: int, running: list[subprocess.Popen[str]]) -> None:
    """Wait until the progress of these processes, not of earlier ones, has reached this step."""
    storage, now = Storage(root), time.time()
    for _ in range(3000):
        pointer = artifact.pointer(storage, "demo", stage)
        folder = f"{pointer.work}/progress" if pointer else "none"
        if any(event.done >= step and event.time > now for event in progress.events(storage, folder)):
            return
        ended = [process for process in running if process.poll() is not None]
        assert not ended, ended[0].communicate(timeout=60)[0]
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")


def publish_shards(root: Path, split: dict[str, list[list[int]]], vocabulary: int = 65_535) -> Published:
    """Publish a shard artifact of these documents' ids (uint16), listed by file name."""
    storage = Storage(root)
    opened = artifact.start(storage, "demo", Identity(Stage("shard", 1), {"n": str(split)}, 1, []), force=True)
    assert isinstance(opened, Building)
    files = []
    for name, documents in split.items():
        sizes = [len(document) for document in documents]
        flat = np.array([token for document in documents for token in document], np.uint16)
        storage.write(opened.file(f"{name}.bin"), flat.tobytes())
        storage.write(opened.file(f"{name}.idx"), shards.index(sizes, np.dtype(np.uint16)))
        columns = {
            "id": [f"{name}/{n}" for n in range(len(sizes))],
            "url": [f"https://a.org/{name}/{n}" for n in range(len(sizes))],
            "start": np.cumsum([0, *sizes])[:-1].astype(np.int64),
            "tokens": np.array(sizes, np.int64),
        }
        with storage.writing(opened.file(f"{name}.documents.parquet")) as stream:
            pq.write_table(pa.table(columns), stream)
        folder = opened.pointer.folder
        files += [describe(storage, folder, name + end, 1) for end in (".bin", ".idx", ".documents.parquet")]
    numbers = {"dtype": "uint16", "vocabulary": vocabulary, "tokenizer": "0" * 64}
    return opened.publish(files, numbers=numbers)
