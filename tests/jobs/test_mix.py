"""How many training tokens of each corpus the shards hold, decided without Spark."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import shard
from jobs.stage.table import write_table
from pipeline.errors import RecipeError
from pipeline.recipe import load
from pipeline.storage import Storage

SHARDS = shard.Shards({"train": 1, "validation": 1}, "uint16", "shard/all/x")


def corpora(*shares: float) -> list[Any]:
    """This run's corpus, and others with these shares."""
    return [SimpleNamespace(name=str(number), share=share) for number, share in enumerate((1 - sum(shares), *shares))]


@given(parts=st.lists(st.integers(1, 50), min_size=1, max_size=6), total=st.integers(1, 200))
def test_budgets_add_up_to_the_total_and_none_is_negative(parts: list[int], total: int) -> None:
    shares = [part / (sum(parts) + 1) for part in parts]
    budgets = shard.budgets(corpora(*shares), [total] * (len(shares) + 1), total)
    assert sum(budgets) == total and min(budgets) >= 0
    assert all(abs(budget - share * total) <= 1 for budget, share in zip(budgets[1:], shares, strict=True))


def test_of_a_corpus_without_budget_only_validation_documents_are_taken(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    tokenization = shard.Tokenization(storage, "work", "", 1, 0.1)
    rows = [
        {"key": f"{number:032x}", "split": split, "id": str(number), "url": "u", "warc": "w", "offset": 0}
        | {"size": 10, "bytes": 20, "ids": bytes(20)}
        for number, split in enumerate(("train", "train", "validation"))
    ]
    tokenized = {}
    for name in ("000-00000", "001-00000"):
        write_table(storage, tokenization.file(name), rows, shard._TOKENIZED)
        tokenized[name] = {"train_documents": 2, "tokens": {"train": 20, "validation": 10}}
    building: Any = SimpleNamespace(storage=storage)
    spark: Any = None
    selection = shard.select(spark, building, corpora(0.001), tokenized, tokenization, 20)
    assert selection.mix == {"0": {"tokens": 20, "epochs": 1.0}, "1": {"tokens": 0, "epochs": 0.0}}
    assert selection.beyond == 2
    assembly = shard.Assembly(storage, "work", SHARDS, SHARDS.names())
    pieces = pa.RecordBatch.from_pylist([piece._asdict() for piece in selection.pieces])
    moved = [row["target"] for batch in assembly.spread(iter([pieces])) for row in batch.to_pylist()]
    assert moved == [0, 0, 1, 1]  # two training documents of the one corpus, a validation document of each


def test_shares_that_leave_nothing_for_the_runs_own_corpus_are_refused() -> None:
    mixed = {"shard.train_tokens": 100, "shard.mix": {"decontaminate/all/a": 0.5, "decontaminate/all/b": 0.5}}
    with pytest.raises(RecipeError, match="leave nothing for this run's corpus"):
        load("recipes/demo.yaml", mixed)
