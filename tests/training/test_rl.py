"""GRPO: advantages and loss against their formulas, which tokens are learned, and resuming after a stop."""

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
from pipeline.artifact import Building, Identity, Published
from tests.training import support
from tests.training.support import content_hash, finish, ranks, rows
from tokenizer import bpe
from tokenizer.chat import PAD, Message
from training import rl
from training.engine.losses import supervised
from training.launch import processes
from training.launch.command import parse
from training.launch.stop import StopSignal
from training.rollouts import rewards
from training.rollouts.advantages import group_advantages
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


def artifact_of(root: Path) -> Published:
    return support.artifact_of(root, "rl")


def even_first(self: rl.Reinforcement, questions: Any, samples: list[Sample]) -> list[float]:
    """Rewards of a verifier that an untrained model satisfies at times: the first id is even."""
    return [float(sample.ids[0] % 2 == 0) for sample in samples]


def new_stage(tmp_path: Path, **changes: Any) -> rl.Reinforcement:
    """The stage on a published untrained model, not run."""
    path = small(tmp_path, **changes)
    source = publish(tmp_path, path)
    job = parse(None, ["--recipe", str(path), "--root", str(tmp_path)])
    opened = artifact.start(job.storage, job.run, Identity(rl.STAGE, {}, 1, [source.as_input()]))
    assert isinstance(opened, Building)
    return rl.Reinforcement(job, processes.start(1), opened, source)


def test_advantages_by_hand() -> None:
    scores = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0] * 4, [0.0] * 4, [0.0, 0.0, 0.0, 1.0]])
    advantages, informative = group_advantages(scores)
    assert informative.tolist() == [True, False, False, True]
    assert advantages[0].tolist() == pytest.approx([1, -1, -1, 1], rel=1e-3)
    assert advantages[1].tolist() == advantages[2].tolist() == [0.0] * 4
    assert advantages[3].tolist() == pytest.approx([-(3**-0.5)] * 3 + [3**0.5], rel=1e-3)
    assert advantages.sum(dim=1).tolist() == pytest.approx([0.0] * 4, abs=1e-5)


def test_the_batch_learns_from_sampled_tokens_of_informative_groups_only(tmp_path: Path) -> None:
    samples = [
        Sample([10, 11], [1, 1], [-1.0, -1.0], True), Sample([12], [1], [-1.0], True),
        Sample([13, 14, 15], [1, 0, 1], [-1.0] * 3, True, 1), Sample([16], [1], [-1.0], False),
    ]  # fmt: skip
    prompts = [[1, 2, 3]] * 2 + [[4]] * 2
    advantages, informative = torch.tensor([[0.0, 0.0], [1.0, -1.0]]), torch.tensor([False, True])
    batch = new_stage(tmp_path).batch(prompts, samples, advantages, informative)
    pad = TOKENIZER.special(PAD)
    assert batch["ids"].tolist() == [
        [1, 2, 3, 10, 11],
        [1, 2, 3, 12, pad],
        [4, 13, 14, 15, pad],
        [4, 16, pad, pad, pad],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]
    assert batch["mask"].tolist() == [[0] * 5, [0] * 5, [0, 1, 0, 1, 0], [0, 1, 0, 0, 0]]
    assert batch["advantages"].tolist() == [0.0, 0.0, 1.0, -1.0]
    assert int(supervised(batch)) == 3


def test_the_loss_and_its_gradient_are_the_formula(tmp_path: Path) -> None:
    stage = new_stage(tmp_path)
    samples = [Sample([10, 11], [1, 1]), Sample([13, 14, 15], [1, 0, 1])]
    batch = stage.batch([[1, 2], [4]], samples, torch.tensor([[0.5, -2.0]]), torch.tensor([True]))
    loss = rl.PolicyLoss(0.8)(stage.net, batch)
    expected = torch.zeros(())
    for prompt, sample, advantage in (([1, 2], samples[0], 0.5), ([4], samples[1], -2.0)):
        logits = stage.net(torch.tensor([prompt + sample.ids])).logits[0] / 0.8
        logprobs = torch.log_softmax(logits, -1)
        for place, (token, sampled) in enumerate(zip(sample.ids, sample.mask, strict=True)):
            if sampled:
                expected = expected - advantage * logprobs[len(prompt) + place - 1, token]
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    grads = [torch.autograd.grad(value, list(stage.net.parameters())) for value in (loss, expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_an_answer_that_does_not_end_earns_nothing(tmp_path: Path) -> None:
    stage = new_stage(tmp_path)
    question = stage.questions.at(1)
    ids = TOKENIZER.encode(str(question.question.columns["answer"]))
    samples = [Sample(ids, [1] * len(ids), [], finished) for finished in (True, False)]
    assert stage.scores([question], samples) == [1.0, 0.0]


def test_it_learns_what_is_rewarded_and_is_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, root = small(tmp_path), tmp_path / "root"
    publish(root, path)
    monkeypatch.setattr(rl.Reinforcement, "scores", even_first)
    run(root, path, monkeypatch)
    metrics, numbers = rows(artifact_of(root)), artifact_of(root).content.numbers
    assert metrics[0]["reward"] < 0.6 < 0.8 < metrics[-1]["reward"]
    assert numbers["reward_first"] == pytest.approx(metrics[0]["reward"], abs=1e-6)
    assert all(row["logprob_gap"] < 1e-3 for row in metrics)
    assert {"loss", "grad_norm", "length", "tool_rate", "informative_groups"} <= set(metrics[0])
    assert [row["step"] for row in metrics if "arithmetic.greedy_accuracy" in row] == [6, 12]
    assert metrics[-1]["arithmetic.greedy_accuracy"] == 1.0
    capsys.readouterr()
    run(root, path, monkeypatch)
    assert "already made" in capsys.readouterr().out


def test_a_step_without_an_informative_group_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, root = small(tmp_path, steps=3), tmp_path / "root"
    source = publish(root, path)
    monkeypatch.setattr(rl.Reinforcement, "scores", lambda self, questions, samples: [1.0] * len(samples))
    run(root, path, monkeypatch)
    assert [row["informative_groups"] for row in rows(artifact_of(root))] == [0.0] * 3
    files = [{f.path: f.sha256 for f in p.content.files} for p in (source, artifact_of(root))]
    assert files[0]["model.safetensors"] == files[1]["model.safetensors"]


def test_stopped_and_started_again_it_makes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small(tmp_path)
    monkeypatch.setattr(rl.Reinforcement, "scores", even_first)
    for name in ("whole", "stopped"):
        publish(tmp_path / name, path)
    run(tmp_path / "whole", path, monkeypatch)
    stops = iter([False] * 6 + [True] + [False] * 100)
    with monkeypatch.context() as context:
        context.setattr(StopSignal, "agreed", lambda self: next(stops))
        with pytest.raises(errors.Interrupted, match="saved step 7"):
            run(tmp_path / "stopped", path, context)
    run(tmp_path / "stopped", path, monkeypatch)
    assert content_hash(tmp_path / "stopped", "rl") == content_hash(tmp_path / "whole", "rl")


def test_questions_and_answers_do_not_depend_on_the_ranks(tmp_path: Path) -> None:
    stage = new_stage(tmp_path)
    whole = [stage.questions.at(number) for number in range(8)]
    assert len({question.question.text for question in whole}) > 4
    assert whole == [stage.questions.at(number) for number in range(8)]
    together = stage.rollout(stage.prompt_ids(whole), 3, 1.0, list(range(8)))
    halves = [
        sample
        for first in (0, 4)
        for sample in stage.rollout(stage.prompt_ids(whole[first : first + 4]), 3, 1.0, [*range(first, first + 4)])
    ]
    assert [sample.ids for sample in halves] == [sample.ids for sample in together]
    for question in whole:
        a, b = question.question.key.replace("-", "+").split("+")
        assert Arithmetic.split(int(a), int(b)) == "train"


class Parity:
    """Another task: whether a number is even, which its verifier reads from the prompt alone."""

    name, label = "parity", "parity questions"

    def questions(self, split: Split, seed: str) -> Iterator[Question]:
        rng = random.Random(seed)
        while True:
            number = 2 * rng.randrange(1000) + (split == "held_out")
            yield Question(str(number), f"Is {number} even?", {})

    def conversation(self, question: Question, tools: Collection[str]) -> list[Message]:
        return [*question.messages(), Message(role="assistant", content="yes")]

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        is_even = [int(prompt[-1]["content"].split()[1]) % 2 == 0 for prompt in prompts]
        return [float((text_of(answer) == "yes") == right) for answer, right in zip(completions, is_even, strict=True)]


def test_tasks_are_drawn_by_their_weights_and_rewarded_by_their_own_verifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"arithmetic": Arithmetic(), "parity": Parity()}
    monkeypatch.setattr("evaluation.tasks.load_task", lambda name: known[name])
    stage = new_stage(tmp_path)
    stage.questions = Questions({"arithmetic": 1, "parity": 3}, 1)
    questions = [stage.questions.at(number) for number in range(400)]
    assert 250 < sum(question.task.name == "parity" for question in questions) < 350
    held_out = stage.questions.held_out(64)
    assert [sum(question.task.name == name for question in held_out) for name in known] == [16, 48]
    first = questions[:20]
    answers = ["yes" if one.task.name == "parity" else str(one.question.columns["answer"]) for one in first]
    samples = [Sample(TOKENIZER.encode(text), [1] * len(TOKENIZER.encode(text)), [], True) for text in answers]
    assert stage.scores(first, samples) == [1.0] * 20
    assert rewards.scores(stage.sampler, first, samples[1:] + samples[:1]).count(0.0) > 0


@pytest.mark.slow
def test_one_rank_and_two_take_the_same_steps(tmp_path: Path) -> None:
    path = small(tmp_path, steps=3)
    code = (
        "import sys; from training import rl; "
        "rl.Reinforcement.scores = lambda self, q, samples: [float(s.ids[0] % 2 == 0) for s in samples]; rl.main()"
    )
    runs = []
    for size in (1, 2):
        root = tmp_path / str(size)
        publish(root, path)
        finish(ranks(size, "-c", code, "--recipe", path, "--root", root))
        runs.append(rows(artifact_of(root)))
    for one, two in zip(*runs, strict=True):
        assert one["reward"] == two["reward"] and one["length"] == two["length"]
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3, abs=1e-5)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
