"""The loader: a permutation per epoch, the same on any number of ranks, over the tokens of the shards."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ArtifactError, RecipeError
from tests.training import support
from training.data.loader import BLOCK, Loader, Mixture, Prefetch, Stream, document_positions, open_split, permuted


@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=4))
def test_positions_restart_after_the_end_of_a_document(rows: list[list[int]]) -> None:
    for ids, positions in zip(rows, document_positions(torch.tensor(rows), 3).tolist(), strict=True):
        expected = 0
        for token, position in zip(ids, positions, strict=True):
            assert position == expected
            expected = 0 if token == 3 else expected + 1


def stream(sizes: list[int], content: str = "c") -> Stream:
    """Tokens that are their own positions in the stream, in shards of these sizes."""
    ends = np.cumsum(sizes)
    return Stream([np.arange(e - s, e, dtype=np.int32) for s, e in zip(sizes, ends, strict=True)], content)


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=100, deadline=None)
def test_permuted_is_a_permutation(count: int, key: int) -> None:
    assert sorted(permuted(np.arange(count), count, key)) == list(range(count))


def test_permuted_stays_what_it_was() -> None:
    """A checkpoint of an older release can be resumed only while this holds."""
    assert permuted(np.arange(10), 10, 1).tolist() == [3, 1, 7, 5, 8, 4, 6, 2, 9, 0]
    assert permuted(np.array([0, 1, 2**40 - 1]), 2**40, 7).tolist() == [548391017472, 297963160049, 690055448187]


def test_permuted_looks_shuffled() -> None:
    order = permuted(np.arange(10_000), 10_000, 3)
    assert abs(float(np.corrcoef(np.arange(10_000), order)[0, 1])) < 0.05
    assert float(np.mean(np.abs(np.diff(order)) == 1)) < 0.01


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 2**32), st.data())
@settings(max_examples=100, deadline=None)
def test_an_epoch_reads_every_window_once(sizes: list[int], window: int, seed: int, data: st.DataObject) -> None:
    if sum(sizes) < window + 1:
        with pytest.raises(RecipeError, match="the corpus has"):
            Loader(stream(sizes), window, seed)
        return
    loader = Loader(stream(sizes), window, seed)
    epoch = data.draw(st.integers(0, 5))
    read = loader.samples(epoch * loader.count + np.arange(loader.count))
    assert all((np.diff(sample) == 1).all() and len(sample) == window + 1 for sample in read)
    assert sorted(int(sample[0]) for sample in read) == [i * window for i in range(loader.count)]


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_the_ranks_together_read_the_batch(ranks: int, step: int) -> None:
    loader = Loader(stream([300, 411]), 7, 1)
    whole = loader.batch(step, 8)
    parts = [loader.batch(step, 8, rank, ranks) for rank in range(ranks)]
    assert torch.equal(torch.cat(parts), whole)


def test_epochs_and_seeds_differ() -> None:
    one, other = Loader(stream([1000]), 5, 1), Loader(stream([1000]), 5, 2)
    first = one.samples(np.arange(one.count))[:, 0].tolist()
    assert first != one.samples(one.count + np.arange(one.count))[:, 0].tolist()
    assert first != other.samples(np.arange(one.count))[:, 0].tolist()


def test_another_corpus_is_refused() -> None:
    state = Loader(stream([100], "a" * 64), 5, 1).state()
    Loader(stream([60, 40], "a" * 64), 5, 1).check(state)
    for other in (Loader(stream([100], "b" * 64), 5, 1), Loader(stream([100], "a" * 64), 6, 1)):
        with pytest.raises(ArtifactError, match="start the stage anew"):
            other.check(state)


def test_reading_past_the_end_is_an_error() -> None:
    with pytest.raises(IndexError):
        stream([10]).read(5, 11)


def test_it_is_a_hundred_times_faster_than_training() -> None:
    """Two CPU ranks train about 12,000 tokens per second."""
    loader = Loader(stream([1 << 20] * 4), 256, 1)
    started = time.perf_counter()
    for step in range(50):
        loader.batch(step, 16)
    assert 50 * 16 * 256 / (time.perf_counter() - started) > 1_200_000


def test_batches_are_samples_across_epochs() -> None:
    loader = Loader(stream([60, 41]), 7, 3)
    indices = np.array([0, loader.count - 1, loader.count, 5 * loader.count + 2, 1])
    expected = np.concatenate([loader.samples(indices[n : n + 1]) for n in range(len(indices))])
    assert np.array_equal(loader.samples(indices), expected)


@given(st.integers(2, 4), st.data())
@settings(max_examples=40, deadline=None)
def test_a_mixture_holds_its_shares_and_each_stream_comes_in_its_order(count: int, data: st.DataObject) -> None:
    parts = [data.draw(st.integers(1, 8)) for _ in range(count)]
    shares = [part / sum(parts) for part in parts]
    streams = [Stream([np.full(500, n, np.int32)], str(n)) for n in range(count)]
    mixed = Mixture(list(zip(streams, shares, strict=True)), 5, 7)
    block = data.draw(st.integers(0, 1000))
    samples = mixed.samples(np.arange(block * BLOCK, (block + 1) * BLOCK))
    assert (samples == samples[:, :1]).all()  # of one stream each
    counts = np.bincount(samples[:, 0], minlength=count)
    assert np.abs(counts - np.array(shares) * BLOCK).max() <= 1
    half = np.bincount(samples[: BLOCK // 2, 0], minlength=count)
    assert (np.abs(half - counts / 2) < 6 * np.sqrt(counts)).all()  # the order is mixed, not stream after stream


def test_no_sample_of_a_mixture_is_lost_or_doubled() -> None:
    one, other = stream([7 * 3000 + 1], "a"), Stream([np.arange(-7001, 0, dtype=np.int32)], "b")
    mixed = Mixture([(one, 0.75), (other, 0.25)], 7, 1)
    samples = mixed.samples(np.arange(2 * BLOCK))
    of_one, of_other = samples[samples[:, 0] >= 0], samples[samples[:, 0] < 0]
    assert len(of_one) == 2 * 768 and len(np.unique(of_one[:, 0])) == len(of_one)  # less than an epoch of 3,000
    assert np.array_equal(of_one, Loader(one, 7, 1).samples(np.arange(len(of_one))))
    assert np.array_equal(of_other, Loader(other, 7, 2).samples(np.arange(len(of_other))))


def test_the_ranks_of_a_mixture_together_read_the_batch_and_another_mixture_is_refused() -> None:
    streams = [(stream([3000], "a"), 0.5), (stream([4000], "b"), 0.5)]
    mixed = Mixture(streams, 7, 1)
    whole = mixed.batch(130, 8)
    assert torch.equal(torch.cat([mixed.batch(130, 8, rank, 4) for rank in range(4)]), whole)
    mixed.check(json.loads(json.dumps(mixed.state())))
    others = [Mixture([(streams[0][0], 0.4), (streams[1][0], 0.6)], 7, 1), Mixture(streams[::-1], 7, 1)]
    others.append(Loader(streams[0][0], 7, 1))  # type: ignore[arg-type]
    for other in others:
        with pytest.raises(ArtifactError, match="start the stage anew"):
            other.check(mixed.state())
    for shares in ((0.9999, 0.0001), (0.5, 0.4)):
        with pytest.raises(RecipeError, match="of a mixture"):
            Mixture([(one, share) for (one, _), share in zip(streams, shares, strict=True)], 7, 1)


def test_prefetched_batches_are_the_same_from_any_step(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(stream([3000]), 7, 1)
    prefetch = Prefetch(loader, 8, 1, 2)
    for step in (0, 1, 2, 9, 10, 3):
        assert torch.equal(prefetch.batch(step), loader.batch(step, 8, 1, 2))

    def broken(*_: object, **__: object) -> None:
        raise OSError("disk")

    monkeypatch.setattr(loader, "samples", broken)
    with pytest.raises(OSError, match="disk"):
        prefetch.batch(50)


def test_the_start_does_not_read_the_corpus(tmp_path: Path) -> None:
    shards = support.publish_shards(tmp_path, {"train-00000": [[1] * 900], "validation-00000": [[2] * 9]}, 512)
    train = open_split(shards, "train", 512)
    assert train.total == 900 and not train.arrays[0].flags.owndata  # mapped, not read
    with pytest.raises(ArtifactError, match="vocabulary of 512, the tokenizer has 600"):
        open_split(shards, "train", 600)
    with pytest.raises(ArtifactError, match="was made by tokenizer"):
        open_split(shards, "train", 512, "other")
