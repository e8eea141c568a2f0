"""Pretraining from shards to a published model: results, shapes of the launch, given weights, n-gram tables."""

from __future__ import annotations

import itertools
import json
import math
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

from evaluation.ngrams import NgramTables, bits_per_byte
from inference import network
from pipeline import artifact, errors, progress, recipe
from pipeline.artifact import Published
from pipeline.storage import Storage
from tests.training import support
from tests.training.pretraining import artifact_of, documents, publish, small
from tokenizer import bpe
from tokenizer.chat import SPECIAL_TOKENS
from training import pretrain
from training.data import loader
from training.engine.engine import rows_per_rank
from training.launch import processes
from training.launch.command import parse
from training.launch.processes import World

SLACK = 4  # times the measured noise, which is the largest of two orders of the sums, not of all


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
    # It has learned: less loss, and fewer bits per byte than counting single tokens gives.
    published = artifact_of(tmp_path / "root")
    numbers = published.content.numbers
    assert numbers["loss_first"] - numbers["loss_last"] > 1.0
    assert numbers["bits_per_byte"] < numbers["unigram_bits_per_byte"]
    assert numbers["bigram_bits_per_byte"] < numbers["unigram_bits_per_byte"]
    assert numbers["tokens_seen"] == 60 * 8 * 32 and numbers["steps_skipped"] == 0
    # Metrics of each step, samples and validation at each evaluation, and a model that transformers loads.
    rows = support.rows(published)
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert [row["step"] for row in rows if "validation_loss" in row] == [20, 40, 60]
    samples = [json.loads(x) for x in published.storage.read(published.file("samples.jsonl")).splitlines()]
    assert [row["step"] for row in samples] == [20, 40, 60] and samples[0]["prompt"] == "the cat"
    folder = Storage(tmp_path / "root").local_path(published.folder)
    net, text = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert numbers["parameters"] == sum(p.numel() for p in net.parameters())
    assert text.decode(text.encode("the cat sees")) == "the cat sees"
    # The same bits per byte, computed from the published files alone.
    shard = artifact.of_run(Storage(tmp_path / "root"), "demo", "shard")
    validation = loader.open_split(shard, "validation", net.config.vocab_size)
    ids = torch.from_numpy(validation.read(0, validation.total))
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 32):
            window = ids[start : start + 33]
            logits = net(input_ids=window[None, :-1]).logits[0]
            nats += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    per_token = nats / (len(ids) - 1)
    assert numbers["validation_loss"] == pytest.approx(per_token, abs=1e-5)
    size = shard.content.numbers["validation_bytes"]
    assert numbers["bits_per_byte"] == pytest.approx(per_token * len(ids) / math.log(2) / size, abs=1e-5)
    # Speeds are in the progress and in the manifest's `run`, not in the metrics.
    work = f"_work/pretrain/{published.content.fingerprint}"
    last = progress.last_event(Storage(tmp_path / "root"), f"{work}/progress")
    assert last is not None and last.done == last.total == 60
    speed = last.numbers
    assert 0 < speed["data_wait"] < speed["step_seconds"] and speed["peak_bytes"] > 2**20
    assert speed["tokens_per_second"] == pytest.approx(8 * 32 / speed["step_seconds"], rel=0.01)
    assert published.manifest.run.numbers.keys() >= {"step_seconds", "data_wait", "tokens_per_second", "peak_bytes"}
    capsys.readouterr()
    pretrain.main()
    assert "already made" in capsys.readouterr().out


def gaps(one: Published, other: Published) -> tuple[float, float, float]:
    """Largest relative difference of a metric at step 1, of one at later steps, and largest difference of a weight."""
    per_step = [
        max(abs(theirs[key] - value) / abs(value) for key, value in ours.items() if value)
        for ours, theirs in zip(support.rows(one), support.rows(other), strict=True)
    ]
    models = (AutoModelForCausalLM.from_pretrained(x.storage.local_path(x.folder)) for x in (one, other))
    pairs = zip(*(model.parameters() for model in models), strict=True)
    return per_step[0], max(per_step[1:]), max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


def test_another_shape_of_the_launch_makes_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for rounding, which steps of Adam and Muon enlarge: other micro-batches show by how much."""
    path = small(tmp_path, steps=8, evaluate_every=4)

    def trained(*options: str) -> Published:
        root = tmp_path / "-".join(("root", *options))
        publish(root, path)
        support.run(pretrain, root, path, monkeypatch, *options)
        return artifact_of(root)

    whole = trained()
    orders = [gaps(whole, trained("--micro-batch", size)) for size in ("1", "2")]
    noise, weights = (SLACK * max(gap[place] for gap in orders) for place in (1, 2))
    for options in (["0"], ["2", "--offload"], ["3"], ["3", "--offload", "--micro-batch", "2"]):
        other = trained("--zero-stage", *options)
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
    """An architecture that is none of our presets, whose embeddings have no rows for our special tokens."""
    path, root = small(tmp_path, steps=4, evaluate_every=4), tmp_path / "root"
    publish(root, path)
    source = artifact.of_run(Storage(root), "demo", "tokenizer")
    tokenizer = bpe.Tokenizer.from_bytes(Storage(root).read(source.file("tokenizer.json")))
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

    # Refused: a folder without a tokenizer, with another one, and a model section that differs from its config.json.
    with pytest.raises(errors.ArtifactError, match=r"holds no tokenizer.json"):
        attempt()
    (given / "tokenizer.json").write_bytes(bpe.train(["other words, 1234567 jumps over naïve façades"], 400, "qwen2"))
    with pytest.raises(errors.ArtifactError, match="other ids than the corpus"):
        attempt()
    tokenizer.write_hf(given, 64)
    with pytest.raises(errors.RecipeError, match=r"model\.layers is 2, model\.mlp_width is 64"):
        attempt(layers=3, mlp_width=96)
    # Accepted: the published model is of the same architecture, has a row per id, and has moved from the given weights.
    attempt()
    published = artifact_of(root)
    assert set(published.content.assets) >= {"weights/model.safetensors", "weights/config.json"}
    after = AutoModelForCausalLM.from_pretrained(published.storage.local_path(published.folder))
    assert type(after) is MistralForCausalLM and after.config.vocab_size == tokenizer.vocabulary
    moved = (after.model.layers[0].mlp.up_proj.weight - net.model.layers[0].mlp.up_proj.weight).abs().max()
    assert 0 < float(moved) < 0.5
    first = support.rows(published)[0]["loss"]
    shard = artifact.of_run(Storage(root), "demo", "shard")
    batch = loader.Loader(loader.open_split(shard, "train", tokenizer.vocabulary), 32, 1).batch(0, 8)
    with torch.no_grad():  # the first loss is the given model's, but for the ids that it has no row for
        logits = net(input_ids=batch[:, :-1].clamp(max=plain - 1)).logits
    known = batch[:, 1:] < plain
    nats = torch.nn.functional.cross_entropy(logits[known], batch[:, 1:][known])
    assert first == pytest.approx(float(nats), rel=0.02)


def qwen_like(folder: Path) -> Any:
    """A checkpoint like Qwen2's: text normalized to NFC, added tokens that are not special, padding rows of embeddings.

    The padding rows are the largest here, so that a model which kept them would sample them.
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
    """A checkpoint like GPT-2's: its own split pattern, one special token, dropout of 0.1, no width of the MLP."""
    data = json.loads(bpe.train(documents(50), 420, "qwen2"))
    data["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    data["added_tokens"] = data["added_tokens"][:1]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=len(data["model"]["vocab"]) + 1, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    )


@pytest.mark.parametrize("make", [qwen_like, gpt2_like])
def test_pretraining_continues_a_checkpoint_with_its_tokenizer(
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
    published = artifact_of(root)
    tokenizer = bpe.Tokenizer.load(published.on_disk())
    theirs = min(net.config.vocab_size, tokenizer.vocabulary)
    after = AutoModelForCausalLM.from_pretrained(published.on_disk())
    assert type(after) is type(net) and after.config.vocab_size == tokenizer.vocabulary
    samples = [json.loads(row) for row in published.storage.read(published.file("samples.jsonl")).splitlines()]
    assert [row["step"] for row in samples] == [1, 2]
    assert not any(value for name, value in after.config.to_dict().items() if "drop" in name)
    # The first loss is that of the checkpoint without its padding rows, plus what the rows of our special tokens take
    # of the probability: they begin as likely as the mean of the others.
    batch = loader.Loader(loader.open_split(shard, "train", tokenizer.vocabulary), 32, 1).batch(0, 8)
    assert int(batch.max()) < theirs
    with torch.no_grad():
        logits = net.eval()(input_ids=batch[:, :-1]).logits[..., :theirs]
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    taken = math.log(tokenizer.vocabulary / theirs)
    assert support.rows(published)[0]["loss"] == pytest.approx(float(nats) + taken, rel=0.01)


def test_checkpoints_of_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    tokenizer = bpe.Tokenizer.from_bytes(bpe.train(documents(20), 400, "qwen2"))
    section = recipe.load(small(tmp_path)).model
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}

    def refused(message: str, **config: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(errors.ArtifactError, match=message):
            network.initial_model(section, str(tmp_path), tokenizer, 1)

    refused("holds no model that transformers loads", model_type="llama", vocab_size=400, **shape)  # no safetensors
    refused("holds no model that transformers loads", model_type="t5")  # no decoder alone
    refused("trust_remote_code", model_type="own", auto_map={"AutoConfig": "own.Config"})
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16}
    Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=400, **shape, **experts)).save_pretrained(tmp_path)
    with pytest.raises(errors.ArtifactError, match="mixture of experts"):
        network.initial_model(section, str(tmp_path), tokenizer, 1)


def test_it_learns_within_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = []
    for within in (False, True):
        path = small(tmp_path, within_documents=within, steps=12, evaluate_every=6)
        publish(tmp_path / "root", path)
        support.run(pretrain, tmp_path / "root", path, monkeypatch)
        published.append(artifact_of(tmp_path / "root"))
    first, second = (support.rows(one)[0]["loss"] for one in published)
    assert first != second and first == pytest.approx(second, rel=1e-2)
    # The published validation loss is that of windows in which no document attends to another.
    last, shard = published[1], artifact.of_run(Storage(tmp_path / "root"), "demo", "shard")
    net = AutoModelForCausalLM.from_pretrained(last.storage.local_path(last.folder))
    validation = loader.open_split(shard, "validation", net.config.vocab_size)
    ids, end, nats = validation.read(0, validation.total).tolist(), net.config.bos_token_id, 0.0
    for start in range(0, len(ids) - 1, 32):
        window = ids[start : start + 33]
        begins = [0, *(n + 1 for n, token in enumerate(window[:-1]) if token == end), len(window) - 1]
        for begin, stop in itertools.pairwise(sorted(set(begins))):
            with torch.no_grad():
                logits = net(input_ids=torch.tensor([window[begin:stop]])).logits[0]
            targets = torch.tensor(window[begin + 1 : stop + 1])
            nats += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    assert last.content.numbers["validation_loss"] == pytest.approx(nats / (len(ids) - 1), abs=1e-5)


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


def test_windows_cover_the_stream_once() -> None:
    stream = loader.Stream([np.arange(50, dtype=np.uint16)], "c")
    windows = [window.tolist() for window in pretrain.windows(stream, 8, None)]
    assert windows == [list(range(start, min(start + 9, 50))) for start in range(0, 49, 8)]
    assert sum(len(window) - 1 for window in windows) == 49
    assert len(list(pretrain.windows(stream, 8, 3))) == 3


def test_tables_match_counts_by_hand() -> None:
    tokens = np.random.default_rng(1).integers(0, 5, 400).cumsum() % 7
    validation = tokens[50:120]
    tables = NgramTables(tokens, 9)
    ones, pairs = Counter(tokens.tolist()), Counter(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    before = Counter(tokens[:-1].tolist())
    unigram = [(ones[t] + 1) / (400 + 9) for t in validation[1:].tolist()]
    steps = list(zip(validation[:-1].tolist(), validation[1:].tolist(), strict=True))
    mixed = [
        tables.weight * pairs[(a, b)] / before[a] + (1 - tables.weight) * u
        for (a, b), u in zip(steps, unigram, strict=True)
    ]
    assert tables.unigram_cost(validation) == pytest.approx(-sum(map(math.log, unigram)) / 69)
    assert tables.bigram_cost(validation) == pytest.approx(-sum(map(math.log, mixed)) / 69)
    assert tables.bigram_cost(validation) < tables.unigram_cost(validation)
    assert math.isfinite(tables.bigram_cost(np.array([8, 8, 0])))  # a pair that was never counted
    assert bits_per_byte(math.log(2), 10, 5) == pytest.approx(2.0)


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(errors.RecipeError, match="not a multiple of 3"):
        rows_per_rank(8, World(0, 0, 3, 3, torch.device("cpu")))
