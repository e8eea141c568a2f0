"""Few-shot prompts that show what a base model can do without fine-tuning: translate, answer as an assistant."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pipeline import lines
from pipeline.available import BUILTIN
from pipeline.errors import InputError
from pipeline.recipe import Evaluation

DATA = Path(__file__).parent / "data"


def read(source: str) -> list[dict[str, str]]:
    """The prompts of a JSON-lines file, or of a bundled one (`builtin:translation`): `name`, `prompt`, `stop`."""
    rows = []
    for number, line in lines.read(str(_file(source)), "check evaluation.demonstrations"):
        try:
            row = json.loads(line)
            rows.append({key: str(row[key]) for key in ("name", "prompt", "stop")})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{source}:{number}: no demonstration: {error!r}",
                "write the line as {'name': …, 'prompt': …, 'stop': …}",
            ) from error
    return rows


def assets(recipe: Evaluation) -> dict[str, str]:
    """Sha256 by name of the files that a recipe's benchmarks and demonstrations read, for the fingerprint."""
    paths = {
        file: Path(file) for benchmark in recipe.benchmarks for file in (benchmark.file, benchmark.examples) if file
    }
    paths |= {source: _file(source) for source in recipe.demonstrations}
    try:
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
    except OSError as error:
        raise InputError(
            f"{error.filename} cannot be read: {error.strerror}", "check the evaluation section"
        ) from error


def _file(source: str) -> Path:
    return DATA / f"{source.removeprefix(BUILTIN)}.jsonl" if source.startswith(BUILTIN) else Path(source)
