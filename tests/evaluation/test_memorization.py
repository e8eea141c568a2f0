"""A tiny model over-trained on one page is caught reciting it, with the page's URL; an untrained one is not."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation import memorization
from inference import network
from pipeline import artifact, recipe
from pipeline.artifact import Published
from pipeline.errors import ArtifactError, InputError
from pipeline.storage import Storage
from tests.training import support
from tokenizer import bpe
from tokenizer.chat import PAD

WORDS = ["the", "cat", "dog", "bird", "sees", "likes", "hears", "small", "big", "red", "old", "and", "then", "while"]
PAGE = (
    "Once upon a time a grey heron stood by the mill and counted every boat that passed under the bridge. "
    "It counted seven barges with coal, three ferries with bells, and one very small canoe without a paddle."
)


def pages(count: int, seed: int) -> list[str]:
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(WORDS, k=60)) + "." for _ in range(count)]


OTHERS, HELD_OUT = pages(12, 1), pages(6, 2)
TOKENIZER = bpe.Tokenizer.from_bytes(bpe.train([PAGE, *OTHERS], 500, "qwen2"))


def ids(texts: list[str]) -> list[list[int]]:
    return [[*TOKENIZER.encode(text), TOKENIZER.end_of_text] for text in texts]


def small(folder: Path, **changed: Any) -> Path:
    data = support.demo(64)
    data["memorization"] |= {"documents": 20, "prompt_tokens": 8, "new_tokens": 24, "free_samples": 6, "recited": 12}
    data["memorization"] |= changed
    return support.write(data, folder)


def over_trained(path: Path) -> Any:
    """200 steps on the one page, each from its beginning: a second of training."""
    section = recipe.load(path).model
    torch.manual_seed(1)
    net: Any = network.build(section, TOKENIZER.vocabulary, TOKENIZER.end_of_text, TOKENIZER.special(PAD), 1)
    page = torch.tensor([[TOKENIZER.end_of_text, *TOKENIZER.encode(PAGE)][:60]])
    optimizer = torch.optim.AdamW(net.parameters(), 0.01)
    for _ in range(200):
        loss = net(input_ids=page, labels=page).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05
    return net


def measured(root: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Published, dict[str, Any]]:
    arguments = ["memorization.py", "--recipe", str(path), "--root", str(root), "--of", "pretrain"]
    monkeypatch.setattr(sys, "argv", arguments)
    memorization.main()
    published = artifact.of_run(Storage(root), "demo", "memorization-pretrain")
    return published, json.loads(published.storage.read(published.file("results.json")))


def test_a_recited_page_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        json.dumps({"question": "What did the heron count?", "choices": ["seven barges with coal, three ferries"]})
        + "\n\n"
        + json.dumps({"question": "Where is Paris?", "choices": [{"text": "France"}]})
    )
    path = small(tmp_path, sets=[str(questions)])
    split = {"train-00000": ids(OTHERS[:6]), "train-00001": ids(OTHERS[6:]), "validation-00000": ids(HELD_OUT)}
    shards = [support.publish_shards(tmp_path, one) for one in (split, {"train-00007": ids([PAGE])})]  # one mixed in
    support.publish(tmp_path, path, "pretrain", TOKENIZER, over_trained(path), shards)
    published, results = measured(tmp_path, path, monkeypatch)
    numbers, url = published.content.numbers, "https://a.org/train-00007/0"

    best = results["train"][0]
    assert (best["url"], best["verbatim"]) == (url, 24) and best["text"] in PAGE and PAGE.startswith(best["prompt"])
    assert numbers["train_samples"] == 13 and numbers["train_longest"] == 24
    assert numbers["train_recited"] == pytest.approx(1 / 13, abs=1e-6)  # nothing else was learned
    assert numbers["validation_samples"] == 6 and numbers["validation_recited"] == 0.0

    assert numbers["free_samples"] == 6 and numbers["free_recited"] >= 0.5
    said = results["free"][0]
    assert said["url"] == url and said["times"] == 1 and said["tokens"] >= 12 and said["text"] in PAGE

    found = results["sets"][str(questions)]
    assert found["contamination_samples"] == 2 and found["rows"][0]["url"] == url
    assert "barges with coal, three ferries" in found["rows"][0]["text"]
    assert found["rows"][1]["tokens"] < 5

    again, _ = measured(tmp_path, path, monkeypatch)
    assert again.manifest.content_hash == published.manifest.content_hash
    assert published.content.assets.keys() == {str(questions)}


def test_an_untrained_model_recites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small(tmp_path)
    shards = support.publish_shards(tmp_path, {"train-00000": ids(OTHERS), "validation-00000": ids(HELD_OUT)})
    support.publish(tmp_path, path, "pretrain", TOKENIZER, inputs=[shards])
    published, _ = measured(tmp_path, path, monkeypatch)
    assert published.content.numbers["train_recited"] == published.content.numbers["free_recited"] == 0.0


def test_documents_are_chosen_by_hash_and_long_enough(tmp_path: Path) -> None:
    shards = support.publish_shards(tmp_path, {"train-00000": [[1] * n for n in range(20)], "train-00001": [[2] * 30]})
    found = memorization.select_documents([shards], "train", 5, 12, 1)
    assert len(found) == 5 and all(len(row["ids"]) >= 12 for row in found)
    assert found == memorization.select_documents([shards], "train", 9, 12, 1)[:5]
    assert found != memorization.select_documents([shards], "train", 5, 12, 2)
    assert len(memorization.select_documents([shards], "train", 50, 12, 1)) == 9


def test_missing_inputs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small(tmp_path)
    support.publish(tmp_path, path, "pretrain", TOKENIZER)
    with pytest.raises(ArtifactError, match="which shards made it"):
        measured(tmp_path, path, monkeypatch)
    with pytest.raises(InputError, match=r"none\.jsonl cannot be read"):
        measured(tmp_path, small(tmp_path, sets=[str(tmp_path / "none.jsonl")]), monkeypatch)
    (tmp_path / "bad.jsonl").write_text('{"a": "b"}\n{')
    with pytest.raises(InputError, match=r"bad\.jsonl:2: no JSON"):
        measured(tmp_path, small(tmp_path, sets=[str(tmp_path / "bad.jsonl")]), monkeypatch)


@pytest.mark.parametrize(("left", "right", "same"), [([], [], 0), ([1], [], 0), ([1, 2, 3], [1, 2], 2), ([1], [2], 0)])
def test_the_common_prefix(left: list[int], right: list[int], same: int) -> None:
    assert memorization.common_prefix(left, right) == same
