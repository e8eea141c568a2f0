"""Fine-tuning a published base model into a published assistant: counts, order, loss, and resuming after a kill."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline import errors, recipe
from pipeline.artifact import Published
from tests.training import support
from tests.training.support import REPOSITORY, content_hash, finish, rows, stage_ranks, wait_for_step
from tokenizer import bpe
from tokenizer.chat import PAD, Message, render
from training import sft
from training.data import conversations
from training.launch import processes
from training.launch.command import parse
from training.launch.stop import StopSignal


def small(folder: Path, **changes: Any) -> Path:
    """The demo recipe with a tiny model and few conversations."""
    data = support.demo(96)
    data["sft"] |= {"conversations": ["builtin:smalltalk"], "tasks": {"arithmetic": 300}, "window": 64}
    data["sft"] |= {"batch": 8, "epochs": 0.4, "evaluate_every": 10, "checkpoint_every": 7} | changes
    data["sft"]["optimizer"] |= {"lr": 0.01, "muon_lr": 0.02}
    return support.write(data, folder)


def loaded(tasks: dict[str, int], sources: Sequence[str] = ("builtin:smalltalk",)) -> list[list[Message]]:
    """The conversations of these tasks and files, as the demo's recipe loads them."""
    section = recipe.load(REPOSITORY / "recipes/demo.yaml").sft
    section = section.model_copy(update={"conversations": list(sources), "tasks": tasks})
    return conversations.load(section, ["calculator"], 1)


def publish(root: Path, path: Path) -> Published:
    """A model as pretrain leaves it, whose tokenizer knows the conversations' words."""
    texts = [json.dumps(messages) for messages in loaded({})]
    return support.publish(root, path, "pretrain", bpe.Tokenizer.from_bytes(bpe.train(texts, 432, "qwen2")))


def run(root: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    support.run(sft, root, path, monkeypatch)


def artifact_of(root: Path) -> Published:
    return support.artifact_of(root, "sft")


def test_it_learns_publishes_and_is_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, root = small(tmp_path), tmp_path / "root"
    publish(root, path)
    run(root, path, monkeypatch)
    published = artifact_of(root)
    numbers, counts = published.content.numbers, published.content.counts
    assert counts is not None and counts.dropped["held_out"] > 0
    assert counts.in_ == len(loaded({"arithmetic": 300}))
    assert numbers["loss_first"] - numbers["loss_last"] > 1.0
    # A row of metrics per step, with the validation loss at every tenth and at the last.
    metrics = rows(published)
    assert [row["step"] for row in metrics] == list(range(1, numbers["steps"] + 1))
    evaluated = [row["step"] for row in metrics if "validation_loss" in row]
    assert evaluated == sorted({*range(10, numbers["steps"] + 1, 10), numbers["steps"]})
    assert numbers["validation_loss"] == pytest.approx(metrics[-1]["validation_loss"], abs=1e-6)
    assert numbers["tokens_learned"] == sum(row["tokens"] for row in metrics)
    # The same validation loss, from the published model and one conversation at a time.
    folder = published.storage.local_path(published.folder)
    net, tokenizer = AutoModelForCausalLM.from_pretrained(folder), bpe.Tokenizer.load(folder)
    rendered = [render(messages, tokenizer) for messages in loaded({"arithmetic": 300})]
    validation = {tuple(one.ids): one for one in rendered if sft.held_out(one)}
    total = count = 0.0
    with torch.no_grad():
        for conversation in validation.values():
            ids, mask = torch.tensor([conversation.ids]), torch.tensor(conversation.mask[1:])
            losses = torch.nn.functional.cross_entropy(net(ids).logits[0, :-1], ids[0, 1:], reduction="none")
            total, count = total + float((losses * mask).sum()), count + float(mask.sum())
    assert numbers["validation_loss"] == pytest.approx(total / count, rel=1e-4)
    assert "<|im_start|>" in AutoTokenizer.from_pretrained(folder).chat_template
    capsys.readouterr()
    run(root, path, monkeypatch)
    assert "already made" in capsys.readouterr().out


def test_stopped_and_started_again_it_makes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small(tmp_path)
    for name in ("whole", "stopped"):
        publish(tmp_path / name, path)
    run(tmp_path / "whole", path, monkeypatch)
    stops = iter([False] * 10 + [True] + [False] * 100)
    with monkeypatch.context() as context:
        context.setattr(StopSignal, "agreed", lambda self: next(stops))
        with pytest.raises(errors.Interrupted) as raised:
            run(tmp_path / "stopped", path, context)
    assert raised.value.exit_code == 85 and "saved step 11" in str(raised.value)
    run(tmp_path / "stopped", path, monkeypatch)
    assert content_hash(tmp_path / "stopped", "sft") == content_hash(tmp_path / "whole", "sft")


def test_the_order_does_not_depend_on_the_ranks(tmp_path: Path) -> None:
    path = small(tmp_path)
    job = parse(None, ["--recipe", str(path), "--root", str(tmp_path)])

    def on_rank(rank: int, size: int) -> sft.FineTuning:
        stage = object.__new__(sft.FineTuning)  # without a model: only the order is tested
        stage.job, stage.world = job, processes.World(rank, rank, size, size, torch.device("cpu"))
        stage.rank_rows = 8 // size
        stage.packed = sft.pack([sft.Rendered([n, n], [0, 1]) for n in range(13)], 1, 0)
        return stage

    alone = on_rank(0, 1)
    for step in range(4):
        assert alone.rows(step) == on_rank(0, 2).rows(step) + on_rank(1, 2).rows(step)
    order = [row for step in range(13) for row in alone.rows(step)]
    assert sorted(order) == sorted(list(range(13)) * 8)  # every row once per epoch
    assert order[:13] != order[13:26]


def test_only_what_the_assistant_says_is_learned() -> None:
    tokenizer = bpe.Tokenizer.from_bytes(bpe.train(["what is it"], 300, "qwen2"))
    for messages in loaded({"arithmetic": 6}, []):
        packed = sft.pack([render(messages, tokenizer)], 96, tokenizer.special(PAD))
        learned = tokenizer.decode(packed.ids[0][packed.mask[0].bool()].tolist())
        content = messages[1]["content"]
        if isinstance(content, str):
            assert learned == f"{content}<|im_end|>"
        else:
            assert learned == f"<|tool|>calculator\n{content[0]['text']}<|/tool|>{content[2]['text']}<|im_end|>"


def test_a_changed_file_of_conversations_is_another_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = tmp_path / "talk.jsonl"
    fingerprints = []
    for word in ("yes", "no"):
        messages = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": word}]
        talk.write_text(json.dumps({"messages": messages}) + "\n")
        path = small(tmp_path, conversations=[str(talk)], tasks={}, epochs=1, batch=1)
        publish(tmp_path / "root", path)
        run(tmp_path / "root", path, monkeypatch)
        fingerprints.append(artifact_of(tmp_path / "root").content.fingerprint)
    assert fingerprints[0] != fingerprints[1]


def test_optimizer_and_schedule_begin_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, root, before = small(tmp_path, epochs=0.2), tmp_path / "root", []
    publish(root, path)
    original = sft.FineTuning.step

    def step(self: sft.FineTuning) -> dict[str, Any]:
        states = self.engine.zero.optimizer_states()
        before.append([torch.as_tensor(value).clone() for state in states for value in state.values()])
        return original(self)

    monkeypatch.setattr(sft.FineTuning, "step", step)
    run(root, path, monkeypatch)
    assert before[0] and not any(value.any() for value in before[0])
    assert all(value.any() for value in before[1])
    steps = artifact_of(root).content.numbers["steps"]
    warmup = round(0.05 * steps)
    assert warmup > 1 and rows(artifact_of(root))[0]["lr"] == pytest.approx(0.01 / warmup)


def test_conversations_that_do_not_fit_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small(tmp_path, window=4)
    publish(tmp_path / "root", path)
    with pytest.raises(errors.InputError, match="fits a window of 4"):
        run(tmp_path / "root", path, monkeypatch)


@pytest.mark.slow
@pytest.mark.gate
def test_two_ranks_killed_and_asked_to_stop_make_the_same_bytes(tmp_path: Path) -> None:
    path = small(tmp_path, epochs=2)
    for name in ("whole", "killed"):
        publish(tmp_path / name, path)
    finish(stage_ranks(2, "sft.py", tmp_path / "whole", path))
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, errors.EXIT_RESUME)):
        running = stage_ranks(2, "sft.py", tmp_path / "killed", path)
        wait_for_step(tmp_path / "killed", "sft", 20, running)
        for process in running if number == signal.SIGKILL else running[1:]:
            process.send_signal(number)
        finish(running, code)
    assert "resumes from step" in finish(stage_ranks(2, "sft.py", tmp_path / "killed", path))
    assert content_hash(tmp_path / "killed", "sft") == content_hash(tmp_path / "whole", "sft")
