"""Prompts that show a base model at work: translation and an assistant, by examples alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pipeline import lines
from pipeline.errors import InputError
from pipeline.recipe import Evaluation

DATA = Path(__file__).parent / "data"
BUILTIN = "builtin:"


def read(source: str) -> list[dict[str, str]]:
    """The prompts of a file or of a set that comes with the project: `name`, `prompt`, `stop`."""
    rows = []
    for number, line in lines.read(str(_file(source)), "check evaluation.demonstrations"):
        try:
            row = json.loads(line)
            rows.append({key: str(row[key]) for key in ("name", "prompt", "stop")})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{source}:{number}: {error!r}", "a line is {'name': …, 'prompt': …, 'stop': …}"
            ) from error
    return rows


def assets(recipe: Evaluation) -> dict[str, str]:
    """Sha256 by name of the files that a recipe's benchmarks and demonstrations read, for the fingerprint."""
    named = {file: Path(file) for one in recipe.benchmarks for file in (one.file, one.examples) if file}
    named |= {source: _file(source) for source in recipe.demonstrations}
    try:
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in named.items()}
    except OSError as error:
        raise InputError(
            f"{error.filename} cannot be read: {error.strerror}", "check the evaluation section"
        ) from error


def _file(source: str) -> Path:
    return DATA / f"{source.removeprefix(BUILTIN)}.jsonl" if source.startswith(BUILTIN) else Path(source)
