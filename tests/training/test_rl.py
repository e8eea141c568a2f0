"""GRPO: advantages and loss by hand, what is learned from, and going on after a stop."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.tasks import Question, Split, text_of
from evaluation.tasks.arithmetic import Arithmetic
from inference.sampler import Sample
from pipeline import artifact, errors
from pipeline.artifact import Building, Published
from tests.training import support
from tests.training.support import finish, ranks, rows
from tokenizer import bpe
from tokenizer.chat import PAD, Message
from training import rl
from training.engine import checkpoint
from training.engine.losses import supervised
from training.launch import processes
from training.launch.command import parse
from training.rollouts import rewards
from training.rollouts.advantages import advantages
from training.rollouts.questions import Questions

TOKENIZER = bpe.Tokenizer.from_bytes(bpe.train(["What is 1 + 2? Calculate it, please. How much"] * 2, 300, "qwen2"))


def small(folder: Path, **changes: Any) -> Path:
    """The demo recipe with a tiny model and short answers."""
    data = support.demo(96)
    data["rl"] |= {"prompts": 8, "samples": 6, "steps": 12, "max_new_tokens": 4, "temperature": 1.0}
    data["rl"] |= {"evaluate_every": 6, "checkpoint_every": 5} | changes
    data["rl"]["optimizer"] |= {"lr": 0.02}
    return support.write(data, folder)


def publish(root: Path, path: Path) -> Published:
    return support.publish(root, path, "sft", TOKENIZER)


def run(root: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    support.run(rl, root, path, monkeypatch)


def made(root: Path) -> Published:
    return support.made(root, "rl")


def even_first(self: rl.Reinforcement, questions: Any, found: list[Sample]) -> list[float]:
    """A verifier that an untrained model can please: the first id is even."""
    return [float(one.ids[0] % 2 == 0) for one in found]


def stage(tmp_path: Path, **changes: Any) -> rl.Reinforcement:
    """The stage without its loop."""
    path = small(tmp_path, **changes)
    source = publish(tmp_path, path)
    job = parse(None, ["--recipe", str(path), "--root", str(tmp_path)])
    opened = artifact.open_stage(job.storage, job.run, rl.STAGE, {}, 1, [source.as_input()])
    assert isinstance(opened, Building)
    return rl.Reinforcement(job, processes.start(1), opened, source)


def test_advantages_by_hand() -> None:
    found, informative = advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0] * 4, [0.0] * 4, [0.0, 0.0, 0.0, 1.0]]))
    assert informative.tolist() == [True, False, False, True]
    assert found[0].tolist() == pytest.approx([1, -1, -1, 1], rel=1e-3)
    assert found[1].tolist() == found[2].tolist() == [0.0] * 4
    assert found[3].tolist() == pytest.approx([-(3**-0.5)] * 3 + [3**0.5], rel=1e-3)
    assert found.sum(dim=1).tolist() == pytest.approx([0.0] * 4, abs=1e-5)


def test_the_batch_learns_from_sampled_tokens_of_informative_groups_only(tmp_path: Path) -> None:
    found = [
        Sample([10, 11], [1, 1], [-1.0, -1.0], True), Sample([12], [1], [-1.0], True),
        Sample([13, 14, 15], [1, 0, 1], [-1.0] * 3, True, 1), Sample([16], [1], [-1.0], False),
    ]  # fmt: skip
    prompts = [[1, 2, 3]] * 2 + [[4]] * 2
    relative, informative = torch.tensor([[0.0, 0.0], [1.0, -1.0]]), torch.tensor([False, True])
    batch = stage(tmp_path).batch(prompts, found, relative, informative)
    pad = TOKENIZER.special(PAD)
    assert batch["ids"].tolist() == [
        [1, 2, 3, 10, 11],
        [1, 2, 3, 12, pad],
        [4, 13, 14, 15, pad],
        [4, 16, pad, pad, pad],
    ]
    assert batch["seen"].tolist() == [[1] * 5, [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]
    assert batch["mask"].tolist() == [[0] * 5, [0] * 5, [0, 1, 0, 1, 0], [0, 1, 0, 0, 0]]
    assert batch["advantages"].tolist() == [0.0, 0.0, 1.0, -1.0]
    assert int(supervised(batch)) == 3


def test_the_loss_and_its_gradient_are_the_formula(tmp_path: Path) -> None:
    made = stage(tmp_path)
    net = made.net
    found = [Sample([10, 11], [1, 1]), Sample([13, 14, 15], [1, 0, 1])]
    batch = made.batch([[1, 2], [4]], found, torch.tensor([[0.5, -2.0]]), torch.tensor([True]))
    loss = rl.PolicyLoss(0.8)(net, batch)
    expected = torch.zeros(())
    for prompt, one, advantage in (([1, 2], found[0], 0.5), ([4], found[1], -2.0)):
        logits = net(torch.tensor([prompt + one.ids])).logits[0] / 0.8
        logprobs = torch.log_softmax(logits, -1)
        for at, (token, own) in enumerate(zip(one.ids, one.mask, strict=True)):
            if own:
                expected = expected - advantage * logprobs[len(prompt) + at - 1, token]
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    grads = [torch.autograd.grad(value, list(net.parameters())) for value in (loss, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_an_answer_that_does_not_end_earns_nothing(tmp_path: Path) -> None:
    made = stage(tmp_path)
    asked = made.questions.at(1)
    ids = TOKENIZER.encode(str(asked.question.columns["answer"]))
    found = [Sample(ids, [1] * len(ids), [], finished) for finished in (True, False)]
    assert made.scores([asked], found) == [1.0, 0.0]


def test_it_learns_what_is_rewarded_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, root = small(tmp_path), tmp_path / "root"
    publish(root, path)
    monkeypatch.setattr(rl.Reinforcement, "scores", even_first)
    run(root, path, monkeypatch)
    found, numbers = rows(made(root)), made(root).content.numbers
    assert found[0]["reward"] < 0.6 < 0.8 < found[-1]["reward"]
    assert numbers["reward_first"] == pytest.approx(found[0]["reward"], abs=1e-6)
    assert all(row["logprob_gap"] < 1e-3 for row in found)
    assert {"loss", "grad_norm", "length", "tool_rate", "informative_groups"} <= set(found[0])
    assert [row["step"] for row in found if "arithmetic.greedy_accuracy" in row] == [6, 12]
    assert found[-1]["arithmetic.greedy_accuracy"] == 1.0
    capsys.readouterr()
    run(root, path, monkeypatch)
    assert "already made" in capsys.readouterr().out


def test_a_step_without_a_informative_group_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, root = small(tmp_path, steps=3), tmp_path / "root"
    source = publish(root, path)
    monkeypatch.setattr(rl.Reinforcement, "scores", lambda self, questions, found: [1.0] * len(found))
    run(root, path, monkeypatch)
    assert [row["informative_groups"] for row in rows(made(root))] == [0.0] * 3
    files = [{f.path: f.sha256 for f in p.content.files} for p in (source, made(root))]
    assert files[0]["model.safetensors"] == files[1]["model.safetensors"]


def test_stopped_and_started_again_it_makes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small(tmp_path)
    monkeypatch.setattr(rl.Reinforcement, "scores", even_first)
    for name in ("whole", "stopped"):
        publish(tmp_path / name, path)
    run(tmp_path / "whole", path, monkeypatch)
    asked = iter([False] * 6 + [True] + [False] * 100)
    with monkeypatch.context() as context:
        context.setattr(checkpoint.Stop, "agreed", lambda self: next(asked))
        with pytest.raises(errors.Interrupted, match="saved step 7"):
            run(tmp_path / "stopped", path, context)
    run(tmp_path / "stopped", path, monkeypatch)
    assert made(tmp_path / "stopped").manifest.content_hash == made(tmp_path / "whole").manifest.content_hash


def test_questions_and_answers_do_not_depend_on_the_ranks(tmp_path: Path) -> None:
    made = stage(tmp_path)
    whole = [made.questions.at(number) for number in range(8)]
    assert len({asked.question.text for asked in whole}) > 4
    assert whole == [made.questions.at(number) for number in range(8)]
    together = made.rollout(made.prompts(whole), 3, 1.0, list(range(8)))
    halves = [
        one
        for first in (0, 4)
        for one in made.rollout(made.prompts(whole[first : first + 4]), 3, 1.0, [*range(first, first + 4)])
    ]
    assert [one.ids for one in halves] == [one.ids for one in together]
    for asked in whole:
        a, b = asked.question.key.replace("-", "+").split("+")
        assert Arithmetic.split(int(a), int(b)) == "train"


class Parity:
    """Another task: whether a number is even, which its verifier learns from the prompt alone."""

    name, label = "parity", "parity questions"

    def questions(self, split: Split, seed: str) -> Iterator[Question]:
        rng = random.Random(seed)
        while True:
            number = 2 * rng.randrange(1000) + (split == "held_out")
            yield Question(str(number), f"Is {number} even?", {})

    def conversation(self, question: Question, tools: Collection[str]) -> list[Message]:
        return [*question.messages(), Message(role="assistant", content="yes")]

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        even = [int(prompt[-1]["content"].split()[1]) % 2 == 0 for prompt in prompts]
        return [float((text_of(said) == "yes") == right) for said, right in zip(completions, even, strict=True)]


def test_tasks_are_drawn_by_their_weights_and_rewarded_by_their_own_verifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"arithmetic": Arithmetic(), "parity": Parity()}
    monkeypatch.setattr("evaluation.tasks.load_task", lambda name: known[name])
    made = stage(tmp_path)
    made.questions = Questions({"arithmetic": 1, "parity": 3}, 1)
    asked = [made.questions.at(number) for number in range(400)]
    assert 250 < sum(one.task.name == "parity" for one in asked) < 350
    held_out = made.questions.held_out(64)
    assert [sum(one.task.name == name for one in held_out) for name in known] == [16, 48]
    answers = ["yes" if one.task.name == "parity" else str(one.question.columns["answer"]) for one in asked[:20]]
    found = [Sample(TOKENIZER.encode(text), [1] * len(TOKENIZER.encode(text)), [], True) for text in answers]
    assert made.scores(asked[:20], found) == [1.0] * 20
    assert rewards.scores(made.sampler, asked[:20], found[1:] + found[:1]).count(0.0) > 0


@pytest.mark.slow
def test_one_rank_and_two_take_the_same_steps(tmp_path: Path) -> None:
    path = small(tmp_path, steps=3)
    code = (
        "import sys; from training import rl; "
        "rl.Reinforcement.scores = lambda s, q, found: [float(one.ids[0] % 2 == 0) for one in found]; rl.main()"
    )
    found = []
    for size in (1, 2):
        root = tmp_path / str(size)
        publish(root, path)
        finish(ranks(size, "-c", code, "--recipe", path, "--root", root))
        found.append(rows(made(root)))
    for one, two in zip(*found, strict=True):
        assert one["reward"] == two["reward"] and one["length"] == two["length"]
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3, abs=1e-5)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
