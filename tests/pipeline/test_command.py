"""What the command line of a stage leads to."""

from __future__ import annotations

from pathlib import Path

from pipeline import command, recipe


def test_archives_of_the_command_line_replace_the_recipes_and_its_limit(tmp_path: Path) -> None:
    limited = recipe.load("recipes/demo.yaml", {"input.max_warcs": 1})
    file = tmp_path / "limited.yaml"
    file.write_text(limited.to_yaml())
    own = ["--recipe", str(file), "--root", str(tmp_path)]
    options = command.parser("").parse_args([*own, "--input", "a.warc", "b.warc"])
    job = command.job(options, warcs=True)
    assert (job.recipe.input.warcs, job.recipe.input.max_warcs, job.input) == (["a.warc", "b.warc"], None, [])
    assert command.job(command.parser("").parse_args(own), warcs=True).recipe == limited


def test_the_context_length_decides_the_tokenizers_files_too() -> None:
    """It is written to tokenizer_config.json."""
    narrow, wide = (recipe.load("recipes/demo.yaml", {"model.window": window}) for window in (512, 1024))
    assert command.settings(narrow, "tokenizer") == narrow.section("tokenizer") | {"model.window": 512}
    assert command.settings(wide, "tokenizer") != command.settings(narrow, "tokenizer")
    assert command.settings(wide, "shard") == narrow.section("shard")
