"""Pretraining that stops, fails or is killed, and the checkpoint from which it resumes."""

from __future__ import annotations

import itertools
import math
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import errors
from pipeline.storage import Storage
from tests.training import support
from tests.training.pretraining import artifact_of, hashes, publish, small
from tests.training.support import content_hash, finish, stage_ranks, wait_for_step
from training import pretrain
from training.data import loader
from training.engine.losses import TokenLoss


def test_a_finished_run_continues_to_a_longer_horizon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, settings = tmp_path / "root", {"evaluate_every": 5, "checkpoint_every": 4, "keep_checkpoints": 3}
    path = small(tmp_path, steps=10, **settings)
    publish(root, path)
    support.run(pretrain, root, path, monkeypatch)
    first = artifact_of(root)
    folders = [f"_work/pretrain/{first.content.fingerprint}/checkpoints/step-{n:08d}" for n in (4, 8, 10)]
    assert all(Storage(root).exists(f"{folder}/commit.json") for folder in folders)
    path = small(tmp_path, steps=20, continue_from=folders[1], **settings)
    support.run(pretrain, root, path, monkeypatch)
    longer = artifact_of(root)
    assert longer.content.fingerprint != first.content.fingerprint and longer.content.assets.keys() == {"continue_from"}
    before, after = support.rows(first), support.rows(longer)
    assert [row["step"] for row in after] == list(range(1, 21))
    assert after[:8] == before[:8]
    # The ninth batch is the same, the learning rate is that of the longer schedule.
    assert after[8]["loss"] == before[8]["loss"] and after[8]["lr"] > before[8]["lr"]
    for changes, message in (
        ({"batch": 4}, "fits no step"),
        ({"steps": 7}, "has taken 8"),
        ({"window": 16}, "the checkpoint read corpus"),
        ({"continue_from": "_work/none"}, "holds no complete checkpoint"),
    ):
        path = small(tmp_path, **({"steps": 20, "continue_from": folders[1]} | settings | changes))
        with pytest.raises(errors.CrawlToChatError, match=message):
            support.run(pretrain, root, path, monkeypatch)


def test_the_last_checkpoint_before_the_decay_stays_and_continues_as_a_longer_run_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"evaluate_every": 100, "checkpoint_every": 3, "keep_checkpoints": 1}
    root, longer = tmp_path / "root", small(tmp_path, steps=24, **settings)
    publish(tmp_path / "whole", longer)
    support.run(pretrain, tmp_path / "whole", longer, monkeypatch)
    path = small(tmp_path, steps=16, **settings)
    publish(root, path)
    support.run(pretrain, root, path, monkeypatch)
    folder = f"_work/pretrain/{artifact_of(root).content.fingerprint}/checkpoints"
    commits = [name for name in Storage(root).names(folder) if name.endswith("commit.json")]
    assert commits == [
        f"{folder}/step-{step:08d}/commit.json" for step in (6, 16)
    ]  # the learning rate decays after step 8
    path = small(tmp_path, steps=24, continue_from=commits[0].removesuffix("/commit.json"), **settings)
    support.run(pretrain, root, path, monkeypatch)
    assert hashes(root) == hashes(tmp_path / "whole")


def diverging(lr: float) -> dict[str, Any]:
    """An optimizer whose decay multiplies matrices by 1 - 1000 x `lr` each step: -19 at 0.02, 0.5 at 0.0005."""
    rates = {"kind": "adamw", "lr": lr, "weight_decay": 1000.0, "warmup": 0.0, "decay": 0.0}
    return rates | {"betas": [0.9, 0.95], "fall": "linear", "floor": 0.0, "clip": 1.0, "z_loss": 0.0}


def test_a_diverged_run_continues_from_the_named_checkpoint_at_a_lower_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 30, "evaluate_every": 30, "checkpoint_every": 2}
    path, messages = small(tmp_path, optimizer=diverging(0.02), **settings), []
    publish(tmp_path, path)
    for _ in range(2):  # the same recipe ends with the same error
        with pytest.raises(errors.StageError, match=r"steps \d+ to \d+: loss .*, gradient norm (inf|nan);") as raised:
            support.run(pretrain, tmp_path, path, monkeypatch)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    first_bad = int(messages[0].split()[1])
    folder = messages[0].rpartition("pretrain.continue_from: ")[2]
    taken = int(folder.rpartition("-")[2])
    assert 0 < taken < first_bad - 1  # at least one sound step is taken again
    path = small(tmp_path, optimizer=diverging(0.0005), continue_from=folder, **settings)
    support.run(pretrain, tmp_path, path, monkeypatch)
    rows, numbers = support.rows(artifact_of(tmp_path)), artifact_of(tmp_path).content.numbers
    assert [row["step"] for row in rows] == list(range(1, 31)) and numbers["steps_skipped"] == 0
    assert [row["lr"] for row in rows] == [0.02] * taken + [0.0005] * (30 - taken)
    assert all(row["loss"] is not None and row["grad_norm"] is not None for row in rows)


@pytest.mark.slow
def test_both_ranks_keep_their_rows_of_a_broken_batch(tmp_path: Path) -> None:
    path = small(tmp_path, steps=30, evaluate_every=30, checkpoint_every=2, optimizer=diverging(0.02))
    shard = publish(tmp_path, path)
    output = finish(stage_ranks(2, "pretrain.py", tmp_path, path), errors.StageError.exit_code)
    kept = sorted(tmp_path.glob("_work/pretrain/*/broken/*.pt"))
    step = int(kept[0].name.split("-")[1])
    assert [file.name for file in kept] == [f"step-{step:08d}-rank-{rank:05d}.pt" for rank in (0, 1)]
    assert str(kept[0]) in output and "pretrain.continue_from: _work/pretrain/" in output
    train = loader.open_split(shard, "train", shard.content.numbers["vocabulary"])
    batch = loader.Loader(train, 32, 1).batch(step - 1, 8)
    assert torch.equal(torch.cat([torch.load(file, weights_only=True)["ids"] for file in kept]), batch)


def test_a_batch_without_a_finite_loss_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = small(tmp_path), []
    publish(tmp_path, path)

    class Broken(TokenLoss):
        def __call__(self, net: Any, batch: Any) -> torch.Tensor:
            seen.append(batch["ids"])
            return super().__call__(net, batch) * (math.nan if len(seen) in (3, 6, 7, 8) else 1.0)

    monkeypatch.setattr(pretrain, "TokenLoss", Broken)
    with pytest.raises(errors.StageError, match=r"steps 6 to 8: loss nan.*the rows of rank 0 are in ") as raised:
        support.run(pretrain, tmp_path, path, monkeypatch)
    assert "begins anew" in raised.value.remedy  # the checkpoint of step 5 leads to step 6 whatever the rate
    kept = torch.load(str(raised.value.what).rsplit(" in ", 1)[1], weights_only=True)
    assert torch.equal(kept["ids"], seen[7])


def test_too_little_memory_is_an_error_with_a_remedy_and_the_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small(tmp_path, steps=8)
    publish(tmp_path, path)

    steps = itertools.count(1)

    class Greedy(TokenLoss):
        def __call__(self, net: Any, batch: Any) -> torch.Tensor:
            return super().__call__(net, batch) + torch.zeros(10**15 if next(steps) == 7 else 1).sum()

    monkeypatch.setattr(pretrain, "TokenLoss", Greedy)
    with pytest.raises(errors.MachineError, match="step 7 needs more memory") as raised:
        support.run(pretrain, tmp_path, path, monkeypatch)
    assert "--micro-batch" in raised.value.remedy
    monkeypatch.setattr(pretrain, "TokenLoss", TokenLoss)
    support.run(pretrain, tmp_path, path, monkeypatch)
    assert "resumes from step 5" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_killed_at_any_step_it_ends_with_the_same_bytes(size: int, tmp_path: Path) -> None:
    # Long enough that the progress, written once per second, shows the steps to kill at before the last.
    path = small(tmp_path, steps=400, evaluate_every=100, checkpoint_every=7)
    for name in ("whole", "killed"):
        publish(tmp_path / name, path)
    finish(stage_ranks(size, "pretrain.py", tmp_path / "whole", path))
    seed = random.SystemRandom().randrange(10**6)
    print(f"the seed of this test's random step is {seed}")  # shown where it fails
    for after in (20, random.Random(seed).randrange(30, 240), 260):
        running = stage_ranks(size, "pretrain.py", tmp_path / "killed", path)
        wait_for_step(tmp_path / "killed", "pretrain", after, running)
        for process in running:
            process.kill()
        for process in running:
            process.communicate()
    assert "resumes from step" in finish(stage_ranks(size, "pretrain.py", tmp_path / "killed", path))
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    assert content_hash(tmp_path / "killed", "pretrain") == content_hash(tmp_path / "whole", "pretrain")
    assert artifact_of(tmp_path / "killed").manifest.run.attempts == 4


@pytest.mark.slow
def test_after_sigterm_it_saves_and_resumes(tmp_path: Path) -> None:
    path = small(tmp_path, steps=600, evaluate_every=300, checkpoint_every=1000)
    publish(tmp_path / "root", path)
    running = stage_ranks(2, "pretrain.py", tmp_path / "root", path)
    wait_for_step(tmp_path / "root", "pretrain", 5, running)
    running[1].send_signal(signal.SIGTERM)  # one of them is enough
    assert "asked to stop and saved step" in finish(running, errors.EXIT_RESUME)
    assert "resumes from step" in finish(stage_ranks(2, "pretrain.py", tmp_path / "root", path))
    assert artifact_of(tmp_path / "root").content.numbers["tokens_seen"] == 600 * 8 * 32
