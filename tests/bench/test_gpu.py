"""The GPU benchmark runs to its end on tiny models: all of it that can be checked without a GPU."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from bench import gpu
from pipeline import errors
from training.engine.losses import TokenLoss


def dry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1024")  # one thread: two only wait for each other on a busy machine
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry", "--seconds", "0.1"])
    gpu.main()


def test_a_dry_run_prints_a_row_a_model_with_goal_and_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dry(monkeypatch)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if "|" in line
    ]
    assert rows[0][:4] == ["model", "parameters", "micro-batch", "tokens/s"]
    found = {name: cells for name, *cells in rows[2:]}
    assert list(found) == list(gpu.MODELS)
    assert all(cells[1] == "32" and float(cells[2].replace(",", "")) > 0 for cells in found.values())
    assert [found[name][5] for name in ("gpt2-124m", "depth-20", "gpt2-1.5b")] == ["50%", "–", "55%"]
    assert "llm.c" in found["gpt2-124m"][7] and "nanochat" in found["depth-20"][7]


def test_where_memory_is_short_a_smaller_micro_batch_is_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Short(TokenLoss):
        def __call__(self, net: Any, batch: Any) -> torch.Tensor:
            if len(batch["ids"]) > 8:
                raise torch.OutOfMemoryError("as a GPU says it")
            return super().__call__(net, batch)

    monkeypatch.setattr(gpu, "token_loss", Short())
    dry(monkeypatch)
    said = capsys.readouterr()
    assert said.err.count("does not fit") == 6
    assert [line.split("|")[3].strip() for line in said.out.splitlines()[4:7]] == ["8"] * 3


def test_without_a_gpu_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(errors.MachineError, match="no GPU") as raised:
        gpu.main()
    assert "--dry" in raised.value.remedy
