"""Evaluation: what is counted, by a sampler with scripted answers, and what is published."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evaluation import evaluate_model, identity
from evaluation.evaluate_model import Evaluator
from evaluation.identity import NAME
from inference import network, sampler
from inference.sampler import Sample, Sampler, Sampling
from inference.tools.calculator import TOOL
from pipeline import artifact, progress, recipe
from pipeline.artifact import Published
from pipeline.storage import Storage
from tests.training import support
from tests.training.support import REPOSITORY
from tokenizer import bpe
from tokenizer.chat import PAD

TOKENIZER = bpe.Tokenizer.from_bytes(bpe.train(["What is it? Please tell me your name."], 300, "qwen2"))


def small(folder: Path) -> Path:
    data = support.demo(128)
    data["evaluation"] |= {
        "tasks": {"arithmetic": 12},
        "samples": 4,
        "max_new_tokens": 6,
        "prompts": ["The", ""],
        "chats": ["Hi"],
    }
    return support.write(data, folder)


def publish(root: Path, path: Path) -> Published:
    return support.publish(root, path, "sft", TOKENIZER)


class Oracle(Sampler):
    """Answers greedily by a call and always right; at temperature 1 every second answer is a direct, wrong one."""

    def __init__(self) -> None:
        self.tokenizer, self._ends, self.rows = TOKENIZER, {TOKENIZER.special("<|im_end|>")}, 0

    def sample(self, prompts: Any, sampling: Sampling, seeds: Any, stream: Any = None) -> Any:
        assert len(prompts) == len(seeds) <= sampler.BATCH_ROWS
        samples = []
        for prompt in prompts:
            text = TOKENIZER.decode(prompt)
            wrong = sampling.temperature > 0 and self.rows % 2 == 0
            self.rows += 1
            sums = re.search(r"(\d+) ([-+]) (\d+)", text)
            if sums:
                said = "0" if wrong else TOOL.run("".join(sums.groups()))
            else:
                said = "I am crawl2chat." if "you" in text.split("user<|im_sep|>")[-1] else "I do not know."
            ids = TOKENIZER.encode(said)
            before = [] if wrong else [7, 8]
            samples.append(Sample([*before, *ids], [0] * len(before) + [1] * len(ids), [], True, int(not wrong)))
        return samples


def evaluator() -> Evaluator:
    chosen = recipe.load(REPOSITORY / "recipes" / "demo.yaml").evaluation
    return Evaluator(Oracle(), chosen.model_copy(update={"samples": 4}), 1)


def test_a_task_counts_right_answers_and_tool_calls() -> None:
    numbers = evaluator().task("arithmetic", 100)
    length = numbers.pop("arithmetic.answer_length")
    assert 2 < length < 5
    assert {name.removeprefix("arithmetic."): value for name, value in numbers.items()} == {
        "questions": 100,
        "samples": 4,
        "sampled_accuracy": 0.5,
        "greedy_accuracy": 1.0,
        "tool_rate": 0.5,
        "greedy_tool_rate": 1.0,
        "accuracy_with_tool": 1.0,
        "accuracy_without_tool": 0.0,
    }


def test_answers_that_do_not_end_are_wrong_and_empty_shares_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Oracle.sample

    def unfinished(self: Oracle, *arguments: Any, **options: Any) -> Any:
        return [Sample(sample.ids, sample.mask, [], False, 1) for sample in original(self, *arguments, **options)]

    monkeypatch.setattr(Oracle, "sample", unfinished)
    numbers = evaluator().task("arithmetic", 100)
    assert (
        numbers["arithmetic.sampled_accuracy"]
        == numbers["arithmetic.greedy_accuracy"]
        == numbers["arithmetic.accuracy_with_tool"]
        == 0.0
    )
    assert numbers["arithmetic.accuracy_without_tool"] is None


def test_identity_counts_both_directions() -> None:
    numbers, rows = evaluator().identity()
    said = [NAME in row["assistant"] for row in rows]
    wanted = [row["claims"] for row in rows]
    assert numbers["identity_said"] == sum(s and w for s, w in zip(said, wanted, strict=True)) / 20
    assert numbers["identity_wrongly_said"] == sum(s and not w for s, w in zip(said, wanted, strict=True)) / 20
    assert numbers["identity_said"] > 0.5 > numbers["identity_wrongly_said"] > 0  # "Hi, how are you?"


def test_it_publishes_under_the_name_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small(tmp_path)
    publish(tmp_path, path)
    arguments = ["evaluate_model.py", "--recipe", str(path), "--root", str(tmp_path), "--of", "sft"]
    monkeypatch.setattr(sys, "argv", arguments)
    evaluate_model.main()
    storage = Storage(tmp_path)
    published = artifact.of_run(storage, "demo", "evaluation-sft")
    results = json.loads(storage.read(published.file("results.json")))
    assert results["numbers"] == published.content.numbers
    assert published.content.assets == identity.assets()
    assert [row["prompt"] for row in results["continuations"]] == ["The", ""]
    assert [row["user"] for row in results["chats"]] == ["Hi"] and isinstance(results["chats"][0]["assistant"], str)
    assert len(results["identity"]) == 40
    events = list(progress.events(storage, f"_work/evaluation/{published.content.fingerprint}/progress"))
    assert events[-1].done == 5
    evaluate_model.main()
    assert "already made" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*arguments, "--force"])
    evaluate_model.main()
    assert artifact.of_run(storage, "demo", "evaluation-sft").manifest.content_hash == published.manifest.content_hash


def overfitted(path: Path, tokenizer: bpe.Tokenizer, text: str) -> Any:
    """A tiny model after 150 steps on one text: a second of training."""
    torch.manual_seed(1)
    ends = tokenizer.end_of_text, tokenizer.special(PAD)
    net: Any = network.build(recipe.load(path).model, tokenizer.vocabulary, *ends, 1)
    ids = torch.tensor([tokenizer.encode(text)])
    optimizer = torch.optim.AdamW(net.parameters(), 0.01)
    for _ in range(150):
        loss = net(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    return net


def test_demonstrations_end_at_their_stop_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "dog: Hund\ncat: die Katze\nsun: Sonne\nthe moon is: der Mond\n"
    tokenizer = bpe.Tokenizer.from_bytes(bpe.train([text], 332, "qwen2"))
    prompts = [
        {"name": "translation", "prompt": "dog: Hund\ncat:", "stop": "\n"},
        {"name": "inside a word", "prompt": "dog: Hund\ncat: die Katze\nsun:", "stop": "nn"},
        {"name": "without an end", "prompt": "dog:", "stop": "never"},
        {"name": "without a prompt", "prompt": "", "stop": "never"},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, prompts)))
    data = yaml.safe_load(small(tmp_path).read_text())
    data["model"]["window"] = 512  # so few ids spell the set's prompts nearly byte by byte
    data["evaluation"] |= {"max_new_tokens": 8, "demonstrations": [str(file), "builtin:translation"]}
    path = support.write(data, tmp_path)
    support.publish(tmp_path, path, "pretrain", tokenizer, overfitted(path, tokenizer, text))
    arguments = ["evaluate_model.py", "--recipe", str(path), "--root", str(tmp_path), "--of", "pretrain"]
    monkeypatch.setattr(sys, "argv", arguments)
    evaluate_model.main()
    published = artifact.of_run(Storage(tmp_path), "demo", "evaluation-pretrain")
    shown = json.loads(published.storage.read(published.file("results.json")))["demonstrations"]
    assert [{key: row[key] for key in ("name", "prompt", "stop")} for row in shown[:4]] == prompts
    whole = tokenizer.decode(tokenizer.encode(text.removeprefix("dog:"))[:8])
    assert [row["text"] for row in shown[:3]] == [" die Katze", " So", whole]
    assert len(shown) == 7 and all("\n" not in row["text"] for row in shown[4:])  # of the set that comes with us
    assert set(published.content.assets) >= {str(file), "builtin:translation"}


@pytest.mark.parametrize("arguments", [[], ["--of"], ["--of", "shard"]])
def test_the_option_of_is_required(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate_model.py", "--recipe", "x", "--root", "y", *arguments])
    with pytest.raises(SystemExit) as raised:
        evaluate_model.main()
    assert raised.value.code == 2


def test_only_one_process_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small(tmp_path)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys, "argv", ["evaluate_model.py", "--recipe", str(path), "--root", str(tmp_path), "--of=sft"])
    evaluate_model.main()
    assert not (tmp_path / "evaluation").exists()
