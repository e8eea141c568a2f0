"""Training conversations: JSON-lines files in TRL's `messages` format, the project's own sets, and those of tasks."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, cast

from pydantic import BaseModel, Field, ValidationError, model_validator

from evaluation import tasks
from pipeline import lines
from pipeline.available import BUILTIN
from pipeline.errors import InputError, RecipeError
from pipeline.recipe import Sft
from tokenizer.chat import Message

DATA = Path(__file__).parent / "builtin"
# How often each set is repeated: some hundred conversations beside the thousands that a task makes.
_REPEATS = {"identity": 5, "smalltalk": 6}


class _Part(BaseModel):
    type: Literal["text", "tool", "output"]
    text: str
    name: str | None = None

    @model_validator(mode="after")
    def _calls_are_named(self) -> _Part:
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("a part of type 'tool' has the tool's name, and no other part has one")
        return self


class _Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str | list[_Part]


class _Conversation(BaseModel):
    """A line of a file. Other keys of TRL's format are ignored."""

    messages: list[_Message] = Field(min_length=1)


def read(path: Path) -> Iterator[list[Message]]:
    """The conversations of a file. Raises `InputError` with file, line and key if a line is not one."""
    for number, line in lines.read(str(path), "check sft.conversations"):
        try:
            conversation = _Conversation.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "line"
            raise InputError(
                f"{path}:{number}: {key}: {first['msg']}",
                'a line is {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}',
            ) from error
        messages = cast(list[Message], conversation.model_dump(exclude_none=True)["messages"])
        if not any(message["role"] == "assistant" for message in messages):
            raise InputError(
                f"{path}:{number}: messages: no turn of the assistant, and only those are learned",
                "add the assistant's answer, or remove the line",
            )
        yield messages


def load(section: Sft, tools: Collection[str], seed: int) -> list[list[Message]]:
    """All conversations of a recipe's files and tasks, shuffled by the seed. `tools`: those that the model may call."""
    conversations: list[list[Message]] = []
    for source in section.conversations:
        path, repeats = _file(source)
        conversations += list(read(path)) * repeats
    for name, count in section.tasks.items():
        task = tasks.load_task(name)
        questions = islice(task.questions("train", f"{seed}:sft:{name}"), count)
        conversations += [task.conversation(question, tools) for question in questions]
    # Packing goes by length and then by this order: conversations of equal length come from all sources in turn.
    random.Random(f"{seed}:conversations").shuffle(conversations)
    return conversations


def assets(sources: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each source's file, for the fingerprint."""
    return {source: _sha256(_file(source)[0]) for source in sources}


def _file(source: str) -> tuple[Path, int]:
    """The file of a source, and how often it is repeated."""
    name = source.removeprefix(BUILTIN)
    if name == source:
        return Path(source), 1
    if name not in _REPEATS:
        known = ", ".join(BUILTIN + other for other in _REPEATS)
        raise RecipeError(
            f"sft.conversations: {source!r} is none of the project's sets", f"name a file or one of {known}"
        )
    return DATA / f"{name}.jsonl", _REPEATS[name]


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"conversations {path} cannot be read: {error}", "check sft.conversations") from error
