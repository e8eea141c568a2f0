"""Text of pages does nothing to the terminal, the log or the page that shows it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.terminal import one_line, plain, show

HOSTILE = "\x1b[31mred\x1b]52;c;cm0gLXJm\x07 \u202egnp.exe\u2066 \x9b2J\r\n\tkept"


def test_controls_and_overrides_of_direction_are_replaced() -> None:
    assert plain(HOSTILE) == "\ufffd[31mred\ufffd]52;c;cm0gLXJm\ufffd \ufffdgnp.exe\ufffd \ufffd2J\ufffd\n\tkept"
    assert plain("naïve 日本 עברית \N{WAVING HAND SIGN}") == "naïve 日本 עברית \N{WAVING HAND SIGN}"


def test_a_title_cannot_write_lines_of_its_own() -> None:
    assert one_line("A title\n  reason   kept") == "A title   reason   kept"


def test_what_is_shown_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    show(["url  \x1b[2J", "title \u202e"])
    assert capsys.readouterr().out == "url  \ufffd[2J\ntitle \ufffd\n"


def test_an_error_that_names_a_page_is_plain() -> None:
    code = (
        "from pipeline import errors\n"
        "def main(): raise errors.InputError('no capture of http://x/\\x1b]0;owned\\x07', 'check \\u202eit')\n"
        "errors.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        3,
        "error: no capture of http://x/\ufffd]0;owned\ufffd\n  -> check \ufffdit\n",
    )
