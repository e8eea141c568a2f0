"""Renders a conversation to (ids, mask): the one renderer of training, sampling and evaluation.

A conversation reads `<|im_start|>role<|im_sep|>content<|im_end|>` turn after turn. Only what the assistant wrote is
trained (mask 1), its `<|im_end|>` included. A tool call, `<|tool|>name` newline `argument<|/tool|>`, is written by the
assistant; its output, `<|output|>…<|/output|>`, is not. Name and argument are plain text: a new tool needs no new id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, Protocol, TypedDict

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
IM_START, IM_SEP, IM_END = "<|im_start|>", "<|im_sep|>", "<|im_end|>"
TOOL, TOOL_END = "<|tool|>", "<|/tool|>"
OUTPUT, OUTPUT_END = "<|output|>", "<|/output|>"
REQUIRED = (END_OF_TEXT, PAD, IM_START, IM_SEP, IM_END, TOOL, TOOL_END, OUTPUT, OUTPUT_END)
# Special tokens without a meaning yet: a tokenizer that has them, and a model trained with it, can be given new ones
# (pictures, sound) without a change of the vocabulary. 32 cost that many rows of the embedding.
RESERVED = tuple(f"<|reserved_{number}|>" for number in range(32))
SPECIAL_TOKENS = (*REQUIRED, *RESERVED)

# What `render` does as a Jinja template, for `transformers`, vLLM and llama.cpp; a test compares the ids. A tool call
# lies inside the content, written out with its special tokens, so the template needs no case for it.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}<|im_sep|>{{ message['content'] }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)

_CALL = re.compile("(.*?)".join(map(re.escape, (TOOL, f"{TOOL_END}{OUTPUT}", OUTPUT_END))), re.DOTALL)


class Part(TypedDict):
    """A part of an assistant's turn: text or a tool call that it writes, or the output of a tool that is fed to it."""

    type: Literal["text", "tool", "output"]
    text: str  # of a tool call: its argument
    name: NotRequired[str]  # of a tool call: the tool's name


class Message(TypedDict):
    """One turn. `content` is text, or parts where the assistant called a tool."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Part]


class Encoder(Protocol):
    """What rendering needs of a tokenizer (`tokenizer.bpe.Tokenizer` is one)."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; special tokens in it are encoded as ordinary text."""

    def special(self, token: str) -> int:
        """The id of a special token."""


@dataclass(frozen=True)
class Rendered:
    """`ids`, and `mask` of the same length: 1 where the token is trained. `mask[i]` is about `ids[i]` as a *target*."""

    ids: list[int]
    mask: list[int]


def render(messages: Sequence[Message], encoder: Encoder) -> Rendered:
    """The whole conversation as ids, with the loss mask, for training."""
    ids: list[int] = []
    mask: list[int] = []

    def add(new: list[int], trained: bool) -> None:
        ids.extend(new)
        mask.extend([int(trained)] * len(new))

    for message in messages:
        trained = message["role"] == "assistant"
        add(_header(message["role"], encoder), False)
        content = message["content"]
        # Part by part, so that no token spans the border of what is trained and what is not.
        parts = [Part(type="text", text=content)] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "text":
                add(encoder.encode(part["text"]), trained)
            elif part["type"] == "tool":
                call = encoder.encode(f"{part['name']}\n{part['text']}")
                add([encoder.special(TOOL), *call, encoder.special(TOOL_END)], trained)
            else:
                # Never trained: the model must call the tool, not learn to invent its output.
                add([encoder.special(OUTPUT), *encoder.encode(part["text"]), encoder.special(OUTPUT_END)], False)
        add([encoder.special(IM_END)], trained)
    return Rendered(ids, mask)


def prompt(messages: Sequence[Message], encoder: Encoder) -> list[int]:
    """Ids of the conversation so far and of the header of the assistant's turn, from which sampling continues."""
    return render(messages, encoder).ids + _header("assistant", encoder)


def parse_call(text: str) -> tuple[str, str]:
    """Name and argument of a tool call, from the text between `<|tool|>` and `<|/tool|>`."""
    name, _, argument = text.partition("\n")
    return name.strip(), argument


def readable(text: str) -> str:
    """An assistant's turn as people read it: each call with its output in brackets, `[calculator: 47+85 = 132]`."""
    return _CALL.sub(lambda match: f"[{': '.join(parse_call(match[1]))} = {match[2]}] ", text)


def _header(role: str, encoder: Encoder) -> list[int]:
    return [encoder.special(IM_START), *encoder.encode(role), encoder.special(IM_SEP)]
