"""A recipe that extends another, and sections that come in kinds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import available
from pipeline.errors import RecipeError
from pipeline.recipe import load, parse

RECIPES = Path(__file__).parents[2] / "recipes"
BASE = RECIPES / "demo.yaml"


def extending(folder: Path, changes: str, base: bytes = BASE.read_bytes(), sha256: str | None = None) -> Path:
    """A recipe of these changes to a base that lies beside it."""
    (folder / "base.yaml").write_bytes(base)
    file = folder / "own.yaml"
    hashed = sha256 or hashlib.sha256(base).hexdigest()
    file.write_text(f"extends: {{recipe: base.yaml, sha256: {hashed}}}\n{changes}")
    return file


def test_it_is_the_base_but_for_what_it_says(tmp_path: Path) -> None:
    corpus = "filter: {languages: {de: 0.5}}\nextract: {languages: {de: [der]}}\n"
    changes = f"name: own\n{corpus}pretrain: {{optimizer: {{lr: 0.5}}}}\n"
    found, base = load(extending(tmp_path, changes)), load(BASE)
    assert (found.name, found.filter.languages, found.pretrain.optimizer.lr) == ("own", {"de": 0.5}, 0.5)
    assert found.filter.gopher == base.filter.gopher and found.sft == base.sft
    assert found.pretrain.optimizer.clip == base.pretrain.optimizer.clip
    assert parse(found.to_yaml(), "x") == found, "what a run writes is complete"


def test_options_replace_what_either_says(tmp_path: Path) -> None:
    file = extending(tmp_path, "name: own\nrl: {steps: 5}\n")
    assert load(file, {"rl.steps": 7, "sft.batch": 3}).rl.steps == 7
    assert load(file).rl.steps == 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("name: own\nrl:\n  steps: 0\n", r"own\.yaml:4: rl\.steps: "),
        ("name: own\nrl:\n  stepz: 1\n", r"own\.yaml:4: rl\.stepz: unknown key"),
        ("name: own\nrl:\n  optimizer: {kind: muon}\n", r"rl\.optimizer\.muon_lr: missing"),
        ("name: own\npretrain: {window: 4096}\n", r"pretrain\.window \(4096\) exceeds"),
    ],
)
def test_errors_name_the_file_that_says_it(changes: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        load(extending(tmp_path, changes))


def test_an_error_of_the_base_names_the_base(tmp_path: Path) -> None:
    base = BASE.read_text().replace("  language_gate: 0.1", "  language_gate: 7").encode()
    line = base.decode().splitlines().index("  language_gate: 7") + 1
    with pytest.raises(RecipeError, match=rf"base\.yaml:{line}: extract\.language_gate"):
        load(extending(tmp_path, "name: own\n", base))


def test_another_base_than_the_one_it_was_written_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"not the file(.|\n)*sha256: " + hashlib.sha256(BASE.read_bytes()).hexdigest()
    ):
        load(extending(tmp_path, "name: own\n", sha256="0" * 64))
    nested = b"extends: {recipe: demo.yaml, sha256: 0}\n"
    with pytest.raises(RecipeError, match="extends a recipe itself"):
        load(extending(tmp_path, "name: own\n", nested))
    (tmp_path / "bad.yaml").write_text("extends: base.yaml\nname: own\n")
    with pytest.raises(RecipeError, match="not a recipe with its hash"):
        load(tmp_path / "bad.yaml")


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_our_recipes_name_the_base_as_it_is(file: Path) -> None:
    assert load(file).name == file.stem


def optimizer(**changes: Any) -> Any:
    return load(BASE, {f"pretrain.optimizer.{key}": value for key, value in changes.items()}).pretrain.optimizer


def test_the_keys_of_a_former_kind_leave_with_it() -> None:
    assert "muon_lr" not in optimizer(kind="adamw").model_dump()
    assert optimizer(kind="adamw", lr=0.1).lr == 0.1
    with pytest.raises(RecipeError, match=r"pretrain\.optimizer\.muon_lr: unknown key"):
        optimizer(kind="adamw", muon_lr=0.1)  # said together, which is a mistake
    given = load(BASE, {"tokenizer.source": "gpt2"}).section("tokenizer")
    assert given == {"source": "gpt2", "sample_bytes": 20_000_000}
    assert load(BASE, {"deduplicate.verify": False}).section("deduplicate").keys().isdisjoint({"min_jaccard"})


def test_a_file_with_a_key_of_another_kind_is_refused() -> None:
    data = yaml.safe_load(BASE.read_text())
    data["rl"]["optimizer"]["muon_lr"] = 0.1
    with pytest.raises(RecipeError, match=r"rl\.optimizer\.muon_lr: unknown key"):
        parse(yaml.safe_dump(data), "x")


def test_tasks_and_tools_that_there_are_not_are_refused_before_anything_is_spent() -> None:
    assert available.tasks() == ("arithmetic",) and available.tools() == ("calculator",)
    for key, value in (("rl.tasks", {"chess": 1}), ("sft.tasks", {"chess": 1}), ("assistant.tools", ["oracle"])):
        with pytest.raises(RecipeError, match=rf"{key}(.|\n)*there is no"):
            load(BASE, {key: value})
    with pytest.raises(RecipeError, match="nothing to learn from"):
        load(BASE, {"sft.conversations": [], "sft.tasks": {}})
