"""Conversation files: which lines are refused, with which errors, and what the project's own sets contain."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from evaluation import identity
from evaluation.identity import NAME
from evaluation.tasks.arithmetic import Arithmetic
from pipeline.errors import InputError, RecipeError
from pipeline.recipe import Sft, load
from tokenizer.chat import Message
from training.data import conversations
from training.data.conversations import DATA

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "source": "mine"}


def sft(sources: list[str], tasks: dict[str, int] | None = None) -> Sft:
    """The demo's section with these sources."""
    return load("recipes/demo.yaml").sft.model_copy(update={"conversations": sources, "tasks": tasks or {}})


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "talk.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def plain(text: str) -> str:
    """The text without case and punctuation, to compare wordings."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def users(name: str) -> list[str]:
    """The first turns of a set of the project's own."""
    return [str(messages[0]["content"]) for messages in conversations.read(DATA / f"{name}.jsonl")]


def test_a_file_is_read_in_order(tmp_path: Path) -> None:
    call = {
        "role": "assistant",
        "content": [{"type": "tool", "name": "calculator", "text": "1+1"}, {"type": "output", "text": "2"}],
    }
    line = json.dumps(GOOD, ensure_ascii=False).replace("Hello", "a\u2028b")
    path = write(tmp_path, GOOD, "", line, {"messages": [{"role": "user", "content": "1+1"}, call]})
    read = list(conversations.read(path))
    assert [len(messages) for messages in read] == [2, 2, 2]
    assert read[1][1]["content"] == "a\u2028b"
    assert read[2][1] == call


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: line: "),
        ({"text": "x"}, ":2: messages: Field required"),
        ({"messages": []}, ":2: messages: "),
        ({"messages": [{"role": "user"}]}, ":2: messages.0.content: Field required"),
        ({"messages": [{"role": "tutor", "content": "x"}]}, ":2: messages.0.role: "),
        ({"messages": [{"role": "user", "content": [{"type": "tool", "text": "1"}]}]}, ":2: messages.0.content."),
        ({"messages": [{"role": "user", "content": "x"}]}, ":2: messages: no turn of the assistant"),
    ],
)
def test_errors_name_file_line_and_key(line: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, line)
    with pytest.raises(InputError, match=re.escape(f"{path}{message}")):
        list(conversations.read(path))


def test_a_missing_file_or_set_is_refused(tmp_path: Path) -> None:
    for call in (lambda p: conversations.load(sft([p]), [], 1), lambda p: conversations.assets([p])):
        with pytest.raises(InputError, match="cannot be read"):
            call(str(tmp_path / "none.jsonl"))
    with pytest.raises(RecipeError, match="builtin:identity"):
        conversations.load(sft(["builtin:poems"]), [], 1)


def test_sources_are_mixed_by_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    section = sft(["builtin:identity", str(path)], {"arithmetic": 50})
    loaded = conversations.load(section, [], 1)
    assert loaded == conversations.load(section, [], 1) != conversations.load(section, [], 2)
    assert len(loaded) == 5 * len(users("identity")) + 50 + 1
    assert loaded.count(list(map(Message, GOOD["messages"]))) == 1  # type: ignore[arg-type]


def test_assets_change_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    sources = ["builtin:smalltalk", str(path)]
    assets = conversations.assets(sources)
    assert assets[str(path)] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(assets) == {"builtin:smalltalk", str(path)}
    write(tmp_path, GOOD, GOOD)
    assert conversations.assets(sources)[str(path)] != assets[str(path)]


def test_a_task_teaches_with_and_without_the_tool_on_training_pairs_only() -> None:
    loaded = conversations.load(sft([], {"arithmetic": 400}), ["calculator"], 1)
    calls = [isinstance(messages[1]["content"], list) for messages in loaded]
    assert len(loaded) == 400 and 150 < sum(calls) < 250
    for messages in loaded:
        a, b = map(int, re.findall(r"\d+", str(messages[0]["content"])))
        assert Arithmetic.split(a, b) == "train"
        content = messages[1]["content"]
        answer = content if isinstance(content, str) else content[-1]["text"]
        assert int(answer) in (a + b, a - b)
    without = conversations.load(sft([], {"arithmetic": 400}), [], 1)
    assert all(isinstance(messages[1]["content"], str) for messages in without)


def test_identity_has_many_wordings_and_always_the_name() -> None:
    assert len(set(map(plain, users("identity")))) >= 150
    for messages in conversations.read(DATA / "identity.jsonl"):
        assert NAME in messages[1]["content"]


def test_smalltalk_teaches_the_contrast() -> None:
    assert len(set(map(plain, users("smalltalk")))) >= 200
    assert not any(NAME in messages[1]["content"] for messages in conversations.read(DATA / "smalltalk.jsonl"))
    assert {"Who is he?", "Who wrote this book?", "What is his name?"} <= set(users("smalltalk"))


def test_questions_of_the_evaluation_are_never_trained_on() -> None:
    trained = set(map(plain, users("identity") + users("smalltalk")))
    questions = identity.questions()
    assert sorted(question["claims"] for question in questions) == [False] * 20 + [True] * 20
    assert len({plain(question["user"]) for question in questions}) == 40
    assert not trained & {plain(question["user"]) for question in questions}
