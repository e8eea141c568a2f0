"""Conversations to learn from: JSON-lines files in TRL's `messages` format, and the sets that come with the project."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import InputError, RecipeError
from tokenizer.chat import Message
from training.tasks import Arithmetic

DATA = Path(__file__).parent / "data"
BUILTIN = "builtin:"
NAME = "crawl2chat"  # what the assistant of the bundled conversations calls itself
_REPEATS = {"identity": 6, "smalltalk": 8}  # few sentences, seen several times beside thousands of sums

_MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(list[Message])


def read(path: Path) -> Iterator[list[Message]]:
    """The conversations of a file. Raises `InputError` with file and line for a line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"conversations {path} cannot be read: {error.strerror}", "check sft.conversations") from error
    for number, line in enumerate(lines, 1):
        try:
            messages = _MESSAGES.validate_python(json.loads(line)["messages"])
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise InputError(
                f"{path}:{number}: no conversation ({str(error).splitlines()[0]})",
                'a line is {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}',
            ) from error
        if not any(message["role"] == "assistant" for message in messages):
            raise InputError(f"{path}:{number}: no turn of the assistant", "there is nothing to learn from it")
        yield messages


def load(sources: list[str], arithmetic: int, seed: int) -> list[list[Message]]:
    """All conversations of a recipe's sources, shuffled by the seed."""
    found: list[list[Message]] = []
    rng = random.Random(f"{seed}:conversations")
    for source in sources:
        if not source.startswith(BUILTIN):
            found += read(Path(source))
            continue
        name = source.removeprefix(BUILTIN)
        if name == "arithmetic":
            task = Arithmetic()
            # Direct answers and calculator calls alike: which is better is for rl to find out.
            found += [task.conversation(task.question(rng, "train"), tool=i % 2 == 0) for i in range(arithmetic)]
        elif name in _REPEATS:
            found += list(read(DATA / f"{name}.jsonl")) * _REPEATS[name]
        else:
            known = ", ".join(BUILTIN + other for other in (*_REPEATS, "arithmetic"))
            raise RecipeError(f"sft.conversations: {source!r} is not known", f"name a file or one of {known}")
    rng.shuffle(found)
    return found


def identity_questions() -> list[dict[str, Any]]:
    """Questions never trained on: `user`, and whether the answer may claim the name (`claims`)."""
    lines = (DATA / "identity_held_out.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
