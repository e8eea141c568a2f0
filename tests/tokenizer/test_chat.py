"""Conversations as people read them; rendering itself is tested beside what uses it (test_bpe.py, training)."""

from __future__ import annotations

import pytest

from tokenizer.chat import OUTPUT, OUTPUT_END, TOOL, TOOL_END, parse_call, readable

CALL = f"{TOOL}calculator\n47+85{TOOL_END}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("132", "132"),
        (f"{CALL}{OUTPUT}132{OUTPUT_END}It is 132.", "[calculator: 47+85 = 132] It is 132."),
        (
            f"{CALL}{OUTPUT}132{OUTPUT_END}{CALL}{OUTPUT}\n{OUTPUT_END}",
            "[calculator: 47+85 = 132] [calculator: 47+85 = \n] ",
        ),
        (CALL, CALL),  # cut before its output: left as it is
    ],
)
def test_a_call_is_shown_with_its_output_in_brackets(text: str, shown: str) -> None:
    assert readable(text) == shown


def test_a_call_is_a_name_and_all_that_follows_its_line() -> None:
    assert parse_call("calculator\n1+\n1") == ("calculator", "1+\n1")
    assert parse_call(" calculator ") == ("calculator", "")
