"""The loader: a permutation per epoch, the same whatever the ranks, over the tokens that were written."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ArtifactError, RecipeError
from training.loader import Loader, Stream, permuted


def stream(sizes: list[int], content: str = "c") -> Stream:
    """Tokens that are their own positions, cut into shards."""
    ends = np.cumsum(sizes)
    return Stream([np.arange(e - s, e, dtype=np.int32) for s, e in zip(sizes, ends, strict=True)], content)


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=100, deadline=None)
def test_permuted_is_a_permutation(count: int, key: int) -> None:
    assert sorted(permuted(np.arange(count), count, key)) == list(range(count))


def test_permuted_stays_what_it_was() -> None:
    """Checkpoints of an old release go on only while this holds."""
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
    read = [loader.sample(epoch * loader.count + i) for i in range(loader.count)]
    assert all((np.diff(sample) == 1).all() and len(sample) == window + 1 for sample in read)
    assert sorted(int(sample[0]) for sample in read) == [i * window for i in range(loader.count)]


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_the_ranks_together_read_the_batch(ranks: int, step: int) -> None:
    loader = Loader(stream([300, 411]), 7, 1)
    whole = loader.batch(step, 8)["ids"]
    parts = [loader.batch(step, 8, rank, ranks)["ids"] for rank in range(ranks)]
    assert torch.equal(torch.cat(parts), whole)


def test_epochs_and_seeds_differ() -> None:
    one, other = Loader(stream([1000]), 5, 1), Loader(stream([1000]), 5, 2)
    first = [int(one.sample(i)[0]) for i in range(one.count)]
    assert first != [int(one.sample(one.count + i)[0]) for i in range(one.count)]
    assert first != [int(other.sample(i)[0]) for i in range(one.count)]


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
    """Two CPU ranks train about 12,000 tokens a second."""
    loader = Loader(stream([1 << 20] * 4), 256, 1)
    started = time.perf_counter()
    for step in range(50):
        loader.batch(step, 16)
    assert 50 * 16 * 256 / (time.perf_counter() - started) > 1_200_000
