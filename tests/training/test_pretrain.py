"""Pretraining from shards to a published model: what it learns, what a kill costs, and the tables beside it."""

from __future__ import annotations

import itertools
import json
import math
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from evaluation.ngrams import Tables, bits_per_byte
from inference import network
from pipeline import artifact, errors, progress, recipe
from pipeline.artifact import Published, Stage, describe
from pipeline.storage import Storage
from tests.training import support
from tests.training.support import finish, stage_ranks, wait_for_step
from tokenizer import bpe, shards
from tokenizer.chat import SPECIAL_TOKENS
from training import pretrain
from training.data import loader
from training.engine.engine import rows_a_rank
from training.engine.losses import TokenLoss
from training.launch import processes
from training.launch.command import parse
from training.launch.processes import World

SLACK = 4  # times the noise that was measured: it is the largest of two orders, not of all
WORDS = [
    "the", "a", "cat", "dog", "bird", "sees", "likes", "hears", "small", "big",
    "red", "old", "and", "then", "while", "near", "house", "tree", "river", "road",
]  # fmt: skip


def documents(count: int) -> list[str]:
    """Text with something to learn: a word leaves three choices for the next."""
    chooser = random.Random(1)
    made = []
    for _ in range(count):
        at, words = chooser.randrange(len(WORDS)), []
        for _ in range(60):
            at = (at * 3 + chooser.choice((1, 4, 6))) % len(WORDS)
            words.append(WORDS[at])
        made.append(" ".join(words) + ".")
    return made


def small(folder: Path, **pretraining: Any) -> Path:
    """The demo recipe with a model of a thousandth and `steps` of a second."""
    data = support.demo(64)
    data["tokenizer"]["vocabulary"] = 512
    data["sft"]["window"] = 32
    data["pretrain"] |= {"window": 32, "batch": 8, "steps": 60, "evaluate_every": 20, "checkpoint_every": 5}
    data["pretrain"]["optimizer"] |= {"lr": 0.02, "muon_lr": 0.05}
    data["pretrain"] |= {"prompts": ["the cat"]} | pretraining
    return support.write(data, folder)


def publish(root: Path, path: Path, vocabulary: int | None = None, given: Path | None = None) -> Published:
    """Tokenizer and shard artifacts of a run, as the stages of the corpus leave them; the tokenizer that of `given`."""
    chosen, storage = recipe.load(path), Storage(root)

    def opened(name: str, inputs: list[artifact.Input]) -> artifact.Building:
        made = artifact.open_stage(
            storage, chosen.name, Stage(name, 1), chosen.section(name), chosen.seed, inputs, force=True
        )
        assert isinstance(made, artifact.Building)
        return made

    texts = documents(120)
    building = opened("tokenizer", [])
    source = bpe.given(str(given)) if given else bpe.train(texts, 512, "qwen2")
    storage.write(building.file("tokenizer.json"), source)
    made_by = building.publish([describe(storage, building.pointer.folder, "tokenizer.json", 1)])
    tokenizer = bpe.Tokenizer.from_bytes(source)
    building = opened("shard", [made_by.as_input()])
    files: list[artifact.File] = []
    numbers: dict[str, Any] = {"tokenizer": tokenizer.sha256, "vocabulary": vocabulary or tokenizer.vocabulary}
    for split, part in (("validation", texts[:20]), ("train", texts[20:])):
        ids = [[*tokenizer.encode(text), tokenizer.end_of_text] for text in part]
        dtype = shards.dtype_for(tokenizer.vocabulary)
        for number, half in enumerate((ids[: len(ids) // 2], ids[len(ids) // 2 :])):
            name = f"{split}-{number:05d}"
            storage.write(building.file(f"{name}.bin"), np.concatenate(half).astype(dtype).tobytes())
            storage.write(building.file(f"{name}.idx"), shards.index([len(x) for x in half], dtype))
            files += [describe(storage, building.pointer.folder, f"{name}.{end}", len(half)) for end in ("bin", "idx")]
        numbers[f"{split}_tokens"] = sum(len(x) for x in ids)
        numbers[f"{split}_bytes"] = sum(len(text.encode()) for text in part)
    return building.publish(files, numbers=numbers | {"dtype": dtype.name})


def made(root: Path) -> Published:
    return support.made(root, "pretrain")


def hashes(root: Path) -> dict[str, str]:
    return {file.path: file.sha256 for file in made(root).content.files}


def test_it_learns_publishes_and_is_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small(tmp_path)
    publish(tmp_path / "root", path)
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--recipe", str(path), "--root", str(tmp_path / "root")])
    monkeypatch.setattr(processes, "leave", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    pretrain.main()
    signal.signal(signal.SIGTERM, before)
    published = made(tmp_path / "root")
    numbers = published.content.numbers
    assert numbers["loss_first"] - numbers["loss_last"] > 1.0
    assert numbers["bits_per_byte"] < numbers["unigram_bits_per_byte"]
    assert numbers["bigram_bits_per_byte"] < numbers["unigram_bits_per_byte"]
    assert numbers["tokens_seen"] == 60 * 8 * 32 and numbers["steps_skipped"] == 0
    rows = [json.loads(x) for x in published.storage.read(published.file("metrics.jsonl")).splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert [row["step"] for row in rows if "validation_loss" in row] == [20, 40, 60]
    samples = [json.loads(x) for x in published.storage.read(published.file("samples.jsonl")).splitlines()]
    assert [row["step"] for row in samples] == [20, 40, 60] and samples[0]["prompt"] == "the cat"
    folder = Storage(tmp_path / "root").local_path(published.folder)
    net, text = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert numbers["parameters"] == sum(p.numel() for p in net.parameters())
    assert text.decode(text.encode("the cat sees")) == "the cat sees"
    # The same bits a byte, counted from the published files alone.
    shard = artifact.of_run(Storage(tmp_path / "root"), "demo", "shard")
    held = loader.open_split(shard, "validation", net.config.vocab_size)
    ids = torch.from_numpy(held.read(0, held.total))
    cost = 0.0
    with torch.no_grad():
        for at in range(0, len(ids) - 1, 32):
            window = ids[at : at + 33]
            logits = net(input_ids=window[None, :-1]).logits[0]
            cost += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    per_token = cost / (len(ids) - 1)
    assert numbers["validation_loss"] == pytest.approx(per_token, abs=1e-5)
    size = shard.content.numbers["validation_bytes"]
    assert numbers["bits_per_byte"] == pytest.approx(per_token * len(ids) / math.log(2) / size, abs=1e-5)
    seen = list(progress.events(Storage(tmp_path / "root"), f"_work/pretrain/{published.content.fingerprint}/progress"))
    assert seen[-1].done == seen[-1].total == 60
    speed = seen[-1].numbers
    assert 0 < speed["data_wait"] < speed["step_seconds"] and speed["peak_bytes"] > 2**20
    assert speed["tokens_per_second"] == pytest.approx(8 * 32 / speed["step_seconds"], rel=0.01)
    assert published.manifest.run.numbers.keys() >= {"step_seconds", "data_wait", "tokens_per_second", "peak_bytes"}
    capsys.readouterr()
    pretrain.main()
    assert "already made" in capsys.readouterr().out


def gaps(one: Published, other: Published) -> tuple[float, float, float]:
    """Largest relative difference of a metric at step 1 and later, and the largest of a weight."""
    each = [
        max(abs(theirs[key] - value) / abs(value) for key, value in ours.items() if value)
        for ours, theirs in zip(support.rows(one), support.rows(other), strict=True)
    ]
    folders = (AutoModelForCausalLM.from_pretrained(x.storage.local_path(x.folder)) for x in (one, other))
    pairs = zip(*(model.parameters() for model in folders), strict=True)
    return each[0], max(each[1:]), max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


def test_another_shape_of_the_launch_makes_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for rounding, of which a step of Adam or Muon makes more: how much, the order of sums alone shows."""
    path = small(tmp_path, steps=8, evaluate_every=4)

    def of(*options: str) -> Published:
        root = tmp_path / "-".join(("root", *options))
        publish(root, path)
        support.run(pretrain, root, path, monkeypatch, *options)
        return made(root)

    whole = of()
    orders = [gaps(whole, of("--micro-batch", size)) for size in ("1", "2")]
    noise, weights = (SLACK * max(gap[place] for gap in orders) for place in (1, 2))
    for options in (["0"], ["2", "--offload"], ["3"], ["3", "--offload", "--micro-batch", "2"]):
        other = of("--zero-stage", *options)
        assert other.content.fingerprint == whole.content.fingerprint
        first, later, apart = gaps(whole, other)
        assert first < 1e-5 and later <= noise and apart <= weights, (options, first, later, apart, noise, weights)


def test_shapes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    place = ["--recipe", str(small(tmp_path)), "--root", str(tmp_path)]
    with pytest.raises(errors.RecipeError, match="--offload needs"):
        parse(None, [*place, "--zero-stage", "0", "--offload"])
    with pytest.raises(errors.RecipeError, match="--compile does not go"):
        parse(None, [*place, "--zero-stage", "3", "--compile"])
    with pytest.raises(errors.RecipeError, match="no number of rows"):
        parse(None, [*place, "--micro-batch", "0"])


def test_it_begins_with_any_model_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture that is none of our presets, with fewer ids than our special tokens need."""
    path, root = small(tmp_path, steps=4, evaluate_every=4), tmp_path / "root"
    publish(root, path)
    made_by = artifact.of_run(Storage(root), "demo", "tokenizer")
    tokenizer = bpe.Tokenizer.from_bytes(Storage(root).read(made_by.file("tokenizer.json")))
    given, shape = tmp_path / "given", {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64}
    plain = tokenizer.vocabulary - len(SPECIAL_TOKENS)
    torch.manual_seed(1)
    net = MistralForCausalLM(MistralConfig(vocab_size=plain, tie_word_embeddings=True, **shape, **heads))
    net.save_pretrained(given)

    def attempt(**changes: Any) -> None:
        data = yaml.safe_load(path.read_text())
        data["model"] |= {"preset": "given"} | changes
        data["pretrain"]["weights"] = str(given)
        support.run(pretrain, root, support.write(data, root), monkeypatch)

    with pytest.raises(errors.ArtifactError, match=r"holds no tokenizer.json"):
        attempt()
    (given / "tokenizer.json").write_bytes(bpe.train(["other words, 1234567 jumps over naïve façades"], 400, "qwen2"))
    with pytest.raises(errors.ArtifactError, match="other ids than the corpus"):
        attempt()
    tokenizer.write_hf(given, 64)
    with pytest.raises(errors.RecipeError, match=r"model\.layers is 2, model\.mlp_width is 64"):
        attempt(layers=3, mlp_width=96)
    attempt()
    published = made(root)
    assert set(published.content.assets) >= {"weights/model.safetensors", "weights/config.json"}
    after = AutoModelForCausalLM.from_pretrained(published.storage.local_path(published.folder))
    assert type(after) is MistralForCausalLM and after.config.vocab_size == tokenizer.vocabulary
    moved = (after.model.layers[0].mlp.up_proj.weight - net.model.layers[0].mlp.up_proj.weight).abs().max()
    assert 0 < float(moved) < 0.5
    first = support.rows(published)[0]["loss"]
    shard = artifact.of_run(Storage(root), "demo", "shard")
    batch = loader.Loader(loader.open_split(shard, "train", tokenizer.vocabulary), 32, 1).batch(0, 8)
    with torch.no_grad():  # the first loss is the given model's, but for the ids that it did not know
        logits = net(input_ids=batch[:, :-1].clamp(max=plain - 1)).logits
    known = batch[:, 1:] < plain
    cost = torch.nn.functional.cross_entropy(logits[known], batch[:, 1:][known])
    assert first == pytest.approx(float(cost), rel=0.02)


def qwen_like(folder: Path) -> Any:
    """As Qwen2 comes: text normalized to NFC, tokens added that are not special, rows that only pad the table.

    The padding rows are the loudest of all here, so that a model which kept them would say them.
    """
    data = json.loads(bpe.train(documents(50), 420, "qwen2"))
    named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"]
    data["normalizer"] = {"type": "NFC"}
    data["added_tokens"] = [
        token | {"content": content, "special": content != "<tool_call>"}
        for content, token in zip(named, data["added_tokens"], strict=False)
    ]
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    rows = 512
    assert rows > len(data["model"]["vocab"]) + len(named) + len(SPECIAL_TOKENS)
    net = Qwen2ForCausalLM(Qwen2Config(vocab_size=rows, attention_dropout=0.5, **shape, **heads))
    with torch.no_grad():
        net.get_input_embeddings().weight[len(data["model"]["vocab"]) + len(named) :] *= 50
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return net


def gpt2_like(folder: Path) -> Any:
    """As GPT-2 comes: its own split pattern, one special token, dropout of a tenth, MLP's width left out."""
    data = json.loads(bpe.train(documents(50), 420, "qwen2"))
    data["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    data["added_tokens"] = data["added_tokens"][:1]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=len(data["model"]["vocab"]) + 1, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    )


@pytest.mark.parametrize("make", [qwen_like, gpt2_like])
def test_a_checkpoint_and_its_tokenizer_are_gone_on_from(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, folder = tmp_path / "root", tmp_path / "checkpoint"
    folder.mkdir()
    torch.manual_seed(1)
    net = make(folder)
    net.save_pretrained(folder)
    data = yaml.safe_load(small(tmp_path, steps=2, evaluate_every=1, weights=str(folder)).read_text())
    heads = {"kv_heads": getattr(net.config, "num_key_value_heads", 2)}
    data["model"] |= {"preset": "given", "mlp_width": 64 if make is qwen_like else 128, "tied": True} | heads
    data["tokenizer"] = {"source": str(folder), "sample_bytes": 1000}
    path = support.write(data, tmp_path)
    shard = publish(root, path, given=folder)
    support.run(pretrain, root, path, monkeypatch)
    published = made(root)
    tokenizer = bpe.Tokenizer.load(published.on_disk())
    theirs = min(net.config.vocab_size, tokenizer.vocabulary)
    after = AutoModelForCausalLM.from_pretrained(published.on_disk())
    assert type(after) is type(net) and after.config.vocab_size == tokenizer.vocabulary
    samples = [json.loads(row) for row in published.storage.read(published.file("samples.jsonl")).splitlines()]
    assert [row["step"] for row in samples] == [1, 2]
    assert not any(value for name, value in after.config.to_dict().items() if "drop" in name)
    # The first loss is the checkpoint's, with those rows of its table that mean something, and what the rows of our
    # special tokens, which begin as likely as the mean of the others, take of the probability.
    batch = loader.Loader(loader.open_split(shard, "train", tokenizer.vocabulary), 32, 1).batch(0, 8)
    assert int(batch.max()) < theirs
    with torch.no_grad():
        logits = net.eval()(input_ids=batch[:, :-1]).logits[..., :theirs]
    cost = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    taken = math.log(tokenizer.vocabulary / theirs)
    assert support.rows(published)[0]["loss"] == pytest.approx(float(cost) + taken, rel=0.01)


def test_checkpoints_of_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    tokenizer = bpe.Tokenizer.from_bytes(bpe.train(documents(20), 400, "qwen2"))
    section = recipe.load(small(tmp_path)).model
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}

    def refused(said: str, **config: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(errors.ArtifactError, match=said):
            network.first(section, str(tmp_path), tokenizer, 1)

    refused("holds no model that transformers loads", model_type="llama", vocab_size=400, **shape)  # no safetensors
    refused("holds no model that transformers loads", model_type="t5")  # no decoder alone
    refused("trust_remote_code", model_type="own", auto_map={"AutoConfig": "own.Config"})
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16}
    Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=400, **shape, **experts)).save_pretrained(tmp_path)
    with pytest.raises(errors.ArtifactError, match="mixture of experts"):
        network.first(section, str(tmp_path), tokenizer, 1)


def test_it_learns_within_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for within in (False, True):
        path = small(tmp_path, within_documents=within, steps=12, evaluate_every=6)
        publish(tmp_path / "root", path)
        support.run(pretrain, tmp_path / "root", path, monkeypatch)
        found.append(made(tmp_path / "root"))
    first, second = (support.rows(one)[0]["loss"] for one in found)
    assert first != second and first == pytest.approx(second, rel=1e-2)
    # The published validation loss is that of windows in which no document sees another.
    last, shard = found[1], artifact.of_run(Storage(tmp_path / "root"), "demo", "shard")
    net = AutoModelForCausalLM.from_pretrained(last.storage.local_path(last.folder))
    held = loader.open_split(shard, "validation", net.config.vocab_size)
    ids, end, cost = held.read(0, held.total).tolist(), net.config.bos_token_id, 0.0
    for at in range(0, len(ids) - 1, 32):
        window = ids[at : at + 33]
        begins = [0, *(n + 1 for n, token in enumerate(window[:-1]) if token == end), len(window) - 1]
        for begin, stop in itertools.pairwise(sorted(set(begins))):
            with torch.no_grad():
                logits = net(input_ids=torch.tensor([window[begin:stop]])).logits[0]
            targets = torch.tensor(window[begin + 1 : stop + 1])
            cost += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    assert last.content.numbers["validation_loss"] == pytest.approx(cost / (len(ids) - 1), abs=1e-5)


def test_a_finished_run_goes_on_to_a_longer_horizon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, settings = tmp_path / "root", {"evaluate_every": 5, "checkpoint_every": 4, "keep_checkpoints": 3}
    path = small(tmp_path, steps=10, **settings)
    publish(root, path)
    support.run(pretrain, root, path, monkeypatch)
    first = made(root)
    folders = [f"_work/pretrain/{first.content.fingerprint}/checkpoints/step-{n:08d}" for n in (4, 8, 10)]
    assert all(Storage(root).exists(f"{folder}/commit.json") for folder in folders)
    path = small(tmp_path, steps=20, continue_from=folders[1], **settings)
    support.run(pretrain, root, path, monkeypatch)
    longer = made(root)
    assert longer.content.fingerprint != first.content.fingerprint and longer.content.assets.keys() == {"continue_from"}
    before, after = support.rows(first), support.rows(longer)
    assert [row["step"] for row in after] == list(range(1, 21))
    assert after[:8] == before[:8]
    # The ninth batch is the same, the rate is that of the longer schedule.
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


def test_the_last_checkpoint_before_the_rate_falls_stays_and_leads_where_a_longer_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"evaluate_every": 100, "checkpoint_every": 3, "keep_checkpoints": 1}
    root, longer = tmp_path / "root", small(tmp_path, steps=24, **settings)
    publish(tmp_path / "whole", longer)
    support.run(pretrain, tmp_path / "whole", longer, monkeypatch)
    path = small(tmp_path, steps=16, **settings)
    publish(root, path)
    support.run(pretrain, root, path, monkeypatch)
    folder = f"_work/pretrain/{made(root).content.fingerprint}/checkpoints"
    commits = [name for name in Storage(root).names(folder) if name.endswith("commit.json")]
    assert commits == [f"{folder}/step-{step:08d}/commit.json" for step in (6, 16)]  # the rate falls after step 8
    path = small(tmp_path, steps=24, continue_from=commits[0].removesuffix("/commit.json"), **settings)
    support.run(pretrain, root, path, monkeypatch)
    assert hashes(root) == hashes(tmp_path / "whole")


def diverging(lr: float) -> dict[str, Any]:
    """An optimizer that multiplies matrices by 1 - 1000 x `lr` each step: -19 at 0.02, 0.5 at 0.0005."""
    rates = {"kind": "adamw", "lr": lr, "weight_decay": 1000.0, "warmup": 0.0, "decay": 0.0}
    return rates | {"betas": [0.9, 0.95], "fall": "linear", "floor": 0.0, "clip": 1.0, "z_loss": 0.0}


def test_what_diverged_goes_on_from_the_checkpoint_that_is_named_at_a_lower_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 30, "evaluate_every": 30, "checkpoint_every": 2}
    path, told = small(tmp_path, optimizer=diverging(0.02), **settings), []
    publish(tmp_path, path)
    for _ in range(2):  # the same recipe comes to the same end
        with pytest.raises(errors.StageError, match=r"steps \d+ to \d+: loss .*, gradient norm (inf|nan);") as raised:
            support.run(pretrain, tmp_path, path, monkeypatch)
        told.append(str(raised.value))
    assert told[0] == told[1]
    first_bad = int(told[0].split()[1])
    folder = told[0].rpartition("pretrain.continue_from: ")[2]
    taken = int(folder.rpartition("-")[2])
    assert 0 < taken < first_bad - 1  # a step before the broken ones is taken again
    path = small(tmp_path, optimizer=diverging(0.0005), continue_from=folder, **settings)
    support.run(pretrain, tmp_path, path, monkeypatch)
    rows, numbers = support.rows(made(tmp_path)), made(tmp_path).content.numbers
    assert [row["step"] for row in rows] == list(range(1, 31)) and numbers["steps_skipped"] == 0
    assert [row["lr"] for row in rows] == [0.02] * taken + [0.0005] * (30 - taken)
    assert all(row["loss"] is not None and row["grad_norm"] is not None for row in rows)


@pytest.mark.slow
def test_both_ranks_keep_their_rows_of_a_batch_that_is_broken(tmp_path: Path) -> None:
    path = small(tmp_path, steps=30, evaluate_every=30, checkpoint_every=2, optimizer=diverging(0.02))
    shard = publish(tmp_path, path)
    said = finish(stage_ranks(2, "pretrain.py", tmp_path, path), errors.StageError.exit_code)
    kept = sorted(tmp_path.glob("_work/pretrain/*/broken/*.pt"))
    step = int(kept[0].name.split("-")[1])
    assert [file.name for file in kept] == [f"step-{step:08d}-rank-{rank:05d}.pt" for rank in (0, 1)]
    assert str(kept[0]) in said and "pretrain.continue_from: _work/pretrain/" in said
    read = loader.open_split(shard, "train", shard.content.numbers["vocabulary"])
    batch = loader.Loader(read, 32, 1).batch(step - 1, 8)
    assert torch.equal(torch.cat([torch.load(file, weights_only=True)["ids"] for file in kept]), batch)


def test_a_batch_that_makes_no_finite_loss_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = small(tmp_path), []
    publish(tmp_path, path)

    class Broken(TokenLoss):
        def __call__(self, net: Any, rows: Any) -> torch.Tensor:
            seen.append(rows["ids"])
            return super().__call__(net, rows) * (math.nan if len(seen) in (3, 6, 7, 8) else 1.0)

    monkeypatch.setattr(pretrain, "TokenLoss", Broken)
    with pytest.raises(errors.StageError, match=r"steps 6 to 8: loss nan.*the rows of rank 0 are in ") as raised:
        support.run(pretrain, tmp_path, path, monkeypatch)
    assert "begins anew" in raised.value.remedy  # the checkpoint of step 5 leads to step 6 whatever the rate
    kept = torch.load(str(raised.value.what).rsplit(" in ", 1)[1], weights_only=True)
    assert torch.equal(kept["ids"], seen[7])


def test_too_little_memory_says_what_to_do_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small(tmp_path, steps=8)
    publish(tmp_path, path)

    steps = itertools.count(1)

    class Greedy(TokenLoss):
        def __call__(self, net: Any, rows: Any) -> torch.Tensor:
            return super().__call__(net, rows) + torch.zeros(10**15 if next(steps) == 7 else 1).sum()

    monkeypatch.setattr(pretrain, "TokenLoss", Greedy)
    with pytest.raises(errors.MachineError, match="step 7 needs more memory") as raised:
        support.run(pretrain, tmp_path, path, monkeypatch)
    assert "--micro-batch" in raised.value.remedy
    monkeypatch.setattr(pretrain, "TokenLoss", TokenLoss)
    support.run(pretrain, tmp_path, path, monkeypatch)
    assert "goes on from step 5" in capsys.readouterr().out


def test_shards_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    shard = publish(tmp_path, small(tmp_path), vocabulary=1000)
    with pytest.raises(errors.ArtifactError, match="vocabulary of 1000"):
        loader.open_split(shard, "train", 512)


def test_unlisted_files_are_not_read(tmp_path: Path) -> None:
    shard = publish(tmp_path, small(tmp_path))
    vocabulary = shard.content.numbers["vocabulary"]
    whole = loader.open_split(shard, "train", vocabulary).total
    assert whole == shard.content.numbers["train_tokens"]
    Storage(tmp_path).write(shard.file("train-00002.bin"), b"\0\0\0\0")
    assert loader.open_split(shard, "train", vocabulary).total == whole


def test_validation_shares_windows_between_ranks() -> None:
    stream = loader.Stream([np.arange(50, dtype=np.uint16)], "c")
    found = [window.tolist() for window in pretrain.windows(stream, 8, None)]
    assert found == [list(range(at, min(at + 9, 50))) for at in range(0, 49, 8)]
    assert sum(len(window) - 1 for window in found) == 49
    assert len(list(pretrain.windows(stream, 8, 3))) == 3


def test_tables_are_the_counts_by_hand() -> None:
    tokens = np.random.default_rng(1).integers(0, 5, 400).cumsum() % 7
    held = tokens[50:120]
    tables = Tables(tokens, 9)
    ones, pairs = Counter(tokens.tolist()), Counter(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    before = Counter(tokens[:-1].tolist())
    unigram = [(ones[t] + 1) / (400 + 9) for t in held[1:].tolist()]
    steps = list(zip(held[:-1].tolist(), held[1:].tolist(), strict=True))
    mixed = [
        tables.weight * pairs[(a, b)] / before[a] + (1 - tables.weight) * u
        for (a, b), u in zip(steps, unigram, strict=True)
    ]
    assert tables.unigram_cost(held) == pytest.approx(-sum(map(math.log, unigram)) / 69)
    assert tables.bigram_cost(held) == pytest.approx(-sum(map(math.log, mixed)) / 69)
    assert tables.bigram_cost(held) < tables.unigram_cost(held)
    assert math.isfinite(tables.bigram_cost(np.array([8, 8, 0])))  # never seen
    assert bits_per_byte(math.log(2), 10, 5) == pytest.approx(2.0)


def test_a_batch_that_ranks_cannot_share_is_refused_before_anything_is_spent() -> None:
    with pytest.raises(errors.RecipeError, match="not a multiple of 3"):
        rows_a_rank(8, World(0, 0, 3, 3, torch.device("cpu")))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_killed_at_any_step_it_ends_with_the_same_bytes(size: int, tmp_path: Path) -> None:
    # Long enough that the events, written once a second, show the steps to kill at before the last.
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
    said = finish(stage_ranks(size, "pretrain.py", tmp_path / "killed", path))
    assert "goes on from step" in said
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    assert made(tmp_path / "killed").manifest.content_hash == made(tmp_path / "whole").manifest.content_hash
    assert made(tmp_path / "killed").manifest.run.attempts == 4


@pytest.mark.slow
def test_asked_to_stop_it_saves_and_goes_on(tmp_path: Path) -> None:
    path = small(tmp_path, steps=600, evaluate_every=300, checkpoint_every=1000)
    publish(tmp_path / "root", path)
    running = stage_ranks(2, "pretrain.py", tmp_path / "root", path)
    wait_for_step(tmp_path / "root", "pretrain", 5, running)
    running[1].send_signal(signal.SIGTERM)  # one of them is enough
    said = finish(running, errors.EXIT_RESUME)
    assert "asked to stop and saved step" in said
    said = finish(stage_ranks(2, "pretrain.py", tmp_path / "root", path))
    assert "goes on from step" in said
    assert made(tmp_path / "root").content.numbers["tokens_seen"] == 600 * 8 * 32
