"""What the commands show of pages: enough to judge a decision, and nothing that acts on the terminal."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from jobs import extract, filter
from jobs.commands import explain, holds, inspect
from pipeline.artifact import Published
from pipeline.errors import InputError
from tests.jobs.conftest import job, of, sharing
from tests.jobs.support import PROSE
from tests.jobs.test_warc import record

URL = "http://evil.test/\u202egnp.exe"
TITLE = "Evil \x1b[31mred\x1b]52;c;cm0gLXJm\x07"


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory, spark: Any) -> Published:
    """filter's decisions on two pages: a hostile one that is kept, and one whose words are numbers and marks."""
    root = tmp_path_factory.mktemp("inspect")

    def page(title: str, body: str) -> bytes:
        return f"<html lang=en><head><title>{title}</title></head><body><p>{body}</p></body></html>".encode()

    archive = root / "evil.warc"
    pages = [record(URL, page(TITLE, PROSE)), record("http://x.test/1", page("Numbers", f"{PROSE} {'7 8 9 - ' * 99}"))]
    archive.write_bytes(b"".join(pages))
    work = job(root / "data", of([archive], **{"extract.language_gate": 0.0}))
    with sharing(spark):
        extract.run(work)
        return filter.run(work)


def printed(module: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    capsys.readouterr()
    module.main()
    return str(capsys.readouterr().out)


def test_a_decision_is_shown_with_its_page_and_the_rule_that_it_broke(
    filtered: Published, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    options = ["--root", filtered.storage.root, "--reason", "gopher_short_words"]
    text = printed(inspect, monkeypatch, capsys, "filter", *options)
    assert f"  {'url':<34}http://x.test/1\n  {'title':<34}Numbers\n" in text
    assert "\n    | The harbour was quiet that morning" in text
    assert re.search(r"\n  gopher_short_words +mean_word_length 1\.\d+, at least 3\n", text), text
    assert re.search(r"\n  gopher_few_letters +alpha_words 0\.\d+, at least 0\.7\n", text), text


def test_nothing_of_a_page_acts_on_the_terminal(
    filtered: Published, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    root = ["--root", filtered.storage.root]
    outputs = [
        printed(inspect, monkeypatch, capsys, "extract", *root),
        printed(inspect, monkeypatch, capsys, "filter", *root),
        printed(explain, monkeypatch, capsys, URL, *root),
        printed(holds, monkeypatch, capsys, URL, *root),
    ]
    for text in outputs:
        assert not set(text) & {"\x1b", "\x07", "\u202e"}
    assert all("\ufffdgnp.exe" in text for text in outputs[:3])
    assert "Evil \ufffd[31mred" in outputs[0]


def test_a_stage_that_there_is_not_is_named(filtered: Published) -> None:
    with pytest.raises(InputError, match="there is no stage 'nosuch'"):
        inspect.named(filtered.storage, "nosuch", None)
