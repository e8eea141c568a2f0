"""GPT-2's recipes see as many tokens as docs/reproduce-gpt2.md says."""

from __future__ import annotations

import pytest

from pipeline import recipe
from tests.training.support import REPOSITORY


@pytest.mark.parametrize(("name", "tokens", "floor"), [("gpt2-124m", 9.89e9, 0.0), ("gpt2-1.5b", 33.55e9, 0.1)])
def test_the_recipes_match_the_table(name: str, tokens: float, floor: float) -> None:
    loaded = recipe.load(REPOSITORY / "recipes" / f"{name}.yaml")
    pretrain, optimizer = loaded.pretrain, loaded.pretrain.optimizer
    assert pretrain.steps * pretrain.batch * pretrain.window == pytest.approx(tokens, rel=1e-3)
    assert round(optimizer.warmup * pretrain.steps) == pytest.approx(700, abs=1)
    assert (optimizer.fall, optimizer.floor, optimizer.lr, optimizer.weight_decay) == ("cosine", floor, 0.0006, 0.1)
    assert (loaded.tokenizer.source, loaded.model.window) == ("gpt2", 1024)
    fineweb = recipe.load(REPOSITORY / "recipes/fineweb.yaml")
    for section in ("extract", "filter", "deduplicate", "redact", "decontaminate"):
        assert loaded.section(section) == fineweb.section(section)
