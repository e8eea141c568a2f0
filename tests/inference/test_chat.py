"""Talking to a run's assistant: which model it is, what it remembers, and what a person types."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from inference import chat
from inference.sampler import Sampler, Sampling
from pipeline import artifact
from pipeline.artifact import Identity, Stage
from pipeline.errors import ArtifactError
from pipeline.storage import Storage
from tests.inference.test_sampler import TOKENIZER, network
from training.engine.export import export


def conversation(tokens: int = 4) -> chat.Conversation:
    return chat.Conversation(Sampler(network(spread=4.0), TOKENIZER), Sampling(tokens), seed=1)


def published(storage: Storage, run: str, step: str) -> artifact.Published:
    """A published random model, as a training stage leaves it."""
    building = artifact.start(storage, run, Identity(Stage(step, 1), {"assistant": {"tools": ["calculator"]}}, 1, []))
    assert isinstance(building, artifact.Building)
    folder = storage.local_path(building.pointer.folder)
    export(network(spread=4.0), TOKENIZER, folder)
    files = [
        artifact.describe(storage, building.pointer.folder, path.name, 0)
        for path in sorted(folder.iterdir())
        if path.is_file()
    ]
    return building.publish(files)


def test_lines_are_messages_until_quit() -> None:
    talk = conversation()
    answers = list(chat.converse(talk, ["one", "", "  two ", "/new", "one", "/quit", "three"]))
    assert len(answers) == 4 and answers[2] == "(a new conversation)"
    assert answers[3] == answers[0]  # greedy, and nothing remembered
    assert [message["content"] for message in talk.messages if message["role"] == "user"] == ["one"]


def test_the_oldest_turns_are_forgotten_where_the_window_is_full() -> None:
    talk = conversation()
    for _ in range(6):
        talk.answer("one")
    assert 2 <= len(talk.messages) < 12 and talk.messages[0]["role"] == "user"


def test_the_newest_assistant_is_taken_with_its_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(tmp_path)
    with pytest.raises(ArtifactError, match="holds no assistant"):
        chat.assistant(storage, None, None)
    tuned = published(storage, "first", "sft")
    assert chat.assistant(storage, None, None).folder == tuned.folder
    reinforced = published(storage, "second", "rl")
    assert chat.assistant(storage, None, None).folder == reinforced.folder
    assert chat.assistant(storage, "first", None).folder == tuned.folder
    with pytest.raises(ArtifactError, match="run first"):
        chat.assistant(storage, "first", "rl")
    monkeypatch.setattr(sys, "argv", ["chat", "--root", str(tmp_path)])
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))
    capsys.readouterr()  # what the stages of the test printed
    chat.main()
    out = capsys.readouterr().out
    assert out.startswith(f"{reinforced.folder}; tools: calculator") and "\nassistant  " in out
