"""Checkpoints: complete or absent, bit-identical to go on from, and exports that transformers loads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pipeline.errors import ArtifactError
from pipeline.recipe import Model, Optimizer
from pipeline.storage import Storage
from tokenizer import bpe
from tokenizer.chat import IM_END, IM_START, PAD, render
from training import checkpoint, launch, model
from training.checkpoint import COMMIT, Checkpoints
from training.engine import Engine, token_loss

VOCABULARY, ROWS = 300, 4
CONFIG = Model(preset="qwen3", layers=2, width=32, heads=2, kv_heads=1, head_dim=16, mlp_width=64, window=32, tied=True)


def engine(kind: str = "muon", total: int = 8) -> Engine:
    section = Optimizer.model_validate(
        {"kind": kind, "lr": 0.003, "muon_lr": 0.02, "betas": (0.9, 0.95), "weight_decay": 0.1, "warmup": 0.2}
        | {"decay": 0.5, "clip": 1.0}
    )
    return Engine(model.build(CONFIG, VOCABULARY, 0, 1, 3), section, total, "fp32", launch.start(1))


def train(made: Engine, until: int) -> list[float]:
    losses = []
    while made.done < until:
        ids = torch.randint(VOCABULARY, (ROWS, 17), generator=torch.Generator().manual_seed(made.done))
        rows = ROWS // made.world.size
        own = ids[made.world.rank * rows : (made.world.rank + 1) * rows]
        losses.append(made.step({"ids": own, "mask": torch.ones_like(own)}, token_loss, 2).loss)
    return losses


def weights(made: Engine) -> dict[str, Any]:
    return {k: v.clone() for k, v in made.model.state_dict().items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_going_on_is_bit_identical(kind: str, tmp_path: Path) -> None:
    whole = engine(kind)
    losses = train(whole, 8)
    first = engine(kind)
    train(first, 3)
    saved = Checkpoints(Storage(tmp_path), "_work/x", first.world)
    torch.manual_seed(77)
    saved.save(first, {"note": [1]})
    drawn = torch.rand(3)
    train(first, 5)
    again = engine(kind)
    torch.manual_seed(1)
    assert saved.load(again) == {"note": [1]}
    assert torch.equal(torch.rand(3), drawn)
    assert again.done == 3
    assert train(again, 8) == losses[3:]
    assert same(weights(again), weights(whole))


def test_the_last_two_stay_and_half_ones_go(tmp_path: Path) -> None:
    storage, made = Storage(tmp_path), engine()
    saved = Checkpoints(storage, "_work/x", made.world)
    assert saved.load(made) is None
    for _ in range(3):
        train(made, made.done + 1)
        saved.save(made, {})
    names = [f"_work/x/checkpoints/step-{n:08d}" for n in (2, 3)]
    assert saved.complete() == names
    storage.remove(f"{names[1]}/{COMMIT}")  # killed before the commit
    again = engine()
    assert saved.load(again) == {}
    assert again.done == 2
    assert {n.rsplit("/", 1)[0] for n in storage.names("_work/x")} == {names[0]}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    storage, made = Storage(tmp_path), engine()
    saved = Checkpoints(storage, "_work/x", made.world)
    train(made, 1)
    saved.save(made, {})
    storage.write("_work/x/checkpoints/step-00000001/model.pt", b"no")
    with pytest.raises(ArtifactError, match="cannot be read"):
        saved.load(engine())


def test_stop_notices_sigterm() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        stop = checkpoint.Stop(launch.start(1))
        assert not stop.agreed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert checkpoint.interrupted("pretrain", 3).exit_code == 85


@pytest.mark.parametrize("tied", [True, False])
def test_an_export_is_what_transformers_loads(tied: bool, tmp_path: Path) -> None:
    tokenizer = bpe.Tokenizer.from_bytes(bpe.train(["hello there, what is 12 + 7?"] * 9, 512, "qwen2"))
    config = CONFIG.model_copy(update={"tied": tied})
    net = model.build(config, tokenizer.vocabulary, tokenizer.end_of_text, tokenizer.special(PAD), 1)
    checkpoint.export(net, tokenizer, tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded, text = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(net(input_ids=ids).logits, loaded(input_ids=ids).logits)
    ends = [tokenizer.special(IM_END), tokenizer.end_of_text]
    settings = GenerationConfig.from_pretrained(tmp_path)
    assert settings.eos_token_id == ends
    assert settings.pad_token_id == text.pad_token_id == tokenizer.special(PAD)
    assert text.eos_token_id == ends[0] and settings.pad_token_id not in ends
    messages: Any = [{"role": "user", "content": "what is 12 + 7?"}]
    rendered = text.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert rendered == render(messages, tokenizer).ids
    assert rendered[0] == tokenizer.special(IM_START)
    first = (tmp_path / "model.safetensors").read_bytes()
    checkpoint.export(loaded, tokenizer, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == first


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_another_number_of_ranks_goes_on(kind: str, tmp_path: Path) -> None:
    """Two ranks to step 3, then one to step 5, then two to step 8: as one rank all the way, but for rounding."""
    losses = [x for ranks, until in ((2, 3), (1, 5), (2, 8)) for x in ranked(tmp_path, ranks, kind, until)]
    assert losses == pytest.approx(train(engine(kind), 8), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_two_ranks_go_on_bit_identically(kind: str, tmp_path: Path) -> None:
    whole = ranked(tmp_path / "whole", 2, kind, 8)
    parts = [x for until in (3, 8) for x in ranked(tmp_path / "parts", 2, kind, until)]
    assert parts == whole
    name = "_work/x/checkpoints/step-00000008/model.pt"
    one, other = (torch.load(tmp_path / f / name, weights_only=True) for f in ("whole", "parts"))
    assert same(one, other)


def ranked(root: Path, ranks: int, kind: str, until: int) -> list[float]:
    """Train to step `until` on so many ranks from the checkpoint in `root`; the losses of the steps taken."""
    port, running = launch._free_port(), []
    root.mkdir(exist_ok=True)
    for rank in range(ranks):
        env = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }  # fmt: skip
        command = [sys.executable, __file__, str(root), kind, str(until)]
        running.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    said = [process.communicate(timeout=300)[0] for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(said)
    losses: list[float] = json.loads((root / "losses.json").read_text())
    return losses


def main(root: str, kind: str, until: str) -> None:
    made = engine(kind)
    saved = Checkpoints(Storage(root), "_work/x", made.world)
    saved.load(made)
    losses = train(made, int(until))
    saved.save(made, {})
    if made.world.first:
        (Path(root) / "losses.json").write_text(json.dumps(losses))
    launch.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
