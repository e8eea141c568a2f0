"""One renderer: messages -> (ids, mask). Training, sampling and evaluation all use it.

A conversation reads `<|im_start|>role<|im_sep|>content<|im_end|>` turn after turn. Only what the assistant wrote is
trained (mask 1), its `<|im_end|>` included; a tool call (`<|tool|>…<|/tool|>`) is written by the assistant, its output
(`<|output|>…<|/output|>`) is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
IM_START, IM_SEP, IM_END = "<|im_start|>", "<|im_sep|>", "<|im_end|>"
TOOL, TOOL_END = "<|tool|>", "<|/tool|>"
OUTPUT, OUTPUT_END = "<|output|>", "<|/output|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, IM_START, IM_SEP, IM_END, TOOL, TOOL_END, OUTPUT, OUTPUT_END)

# The same rendering as `render`, for `transformers`, vLLM and llama.cpp. Tool calls lie inside the content as text
# of special tokens, so nothing more is needed.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}<|im_sep|>{{ message['content'] }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)


class Part(TypedDict):
    """A piece of an assistant's turn: text it writes, a tool call it writes, or the output it is given."""

    type: Literal["text", "tool", "output"]
    text: str


class Message(TypedDict):
    """One turn. `content` is text, or parts where the assistant called a tool."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Part]


class Encoder(Protocol):
    """What rendering needs of a tokenizer (`tokenizer.bpe.Tokenizer` is one)."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; special tokens in it are not special."""

    def special(self, token: str) -> int:
        """Id of a special token."""


@dataclass(frozen=True)
class Rendered:
    """`ids` and, as long, `mask`: 1 where the token is trained. `mask[i]` speaks of `ids[i]` as a *target*."""

    ids: list[int]
    mask: list[int]


def render(messages: Sequence[Message], encoder: Encoder) -> Rendered:
    """The whole conversation, for training."""
    ids: list[int] = []
    mask: list[int] = []

    def add(new: list[int], trained: bool) -> None:
        ids.extend(new)
        mask.extend([int(trained)] * len(new))

    for message in messages:
        trained = message["role"] == "assistant"
        add(_header(message["role"], encoder), False)
        content = message["content"]
        parts = [Part(type="text", text=content)] if isinstance(content, str) else content
        for part in parts:
            inner = encoder.encode(part["text"])
            if part["type"] == "text":
                add(inner, trained)
            elif part["type"] == "tool":
                add([encoder.special(TOOL), *inner, encoder.special(TOOL_END)], trained)
            else:
                add([encoder.special(OUTPUT), *inner, encoder.special(OUTPUT_END)], False)
        add([encoder.special(IM_END)], trained)
    return Rendered(ids, mask)


def prompt(messages: Sequence[Message], encoder: Encoder) -> list[int]:
    """The conversation so far and the head of the assistant's turn, for sampling."""
    return render(messages, encoder).ids + _header("assistant", encoder)


def _header(role: str, encoder: Encoder) -> list[int]:
    return [encoder.special(IM_START), *encoder.encode(role), encoder.special(IM_SEP)]
