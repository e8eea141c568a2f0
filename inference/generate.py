"""What a model says: continuations of a text, or answers of an assistant.

    python -m inference.generate --model .crawl2chat/data/rl/all/… --chat --tool calculator --prompt "What is 47 + 85?"
    python -m inference.generate --model … --prompt "The" --samples 4 --temperature 0.8 --min-p 0.05

`--model` is a folder in the layout of `transformers` that a training stage published. A seed says the same again.
"""

from __future__ import annotations

import argparse
import codecs
from pathlib import Path

import torch

from inference.network import load
from inference.sampler import Sampler, Sampling, seeds
from inference.tools import named
from pipeline import errors
from tokenizer.bpe import Tokenizer
from tokenizer.chat import IM_END, Message, prompt


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a published model")
    parser.add_argument("--prompt", action="append", required=True, help="may be given several times")
    parser.add_argument("--chat", action="store_true", help="the prompts are a user's messages, one conversation each")
    parser.add_argument("--tool", action="append", default=[], help="with --chat: a tool that the model may call")
    parser.add_argument("--stream", action="store_true", help="print each token as it comes, one sample after another")
    parser.add_argument("--samples", type=int, default=1, help="of each prompt")
    parser.add_argument("--tokens", type=int, default=128, help="new ones, at most")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--stop", action="append", default=[], help="a text that ends a sample")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


class Printer:
    """Prints ids as text while they come, a character once its last byte is there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._decoder = tokenizer, codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._silent = {tokenizer.special(IM_END), tokenizer.end_of_text}

    def __call__(self, row: int, token: int) -> None:
        """One id of the row; the end of a turn says nothing."""
        if token not in self._silent:
            print(self._decoder.decode(self._tokenizer.decode_bytes([token])), end="", flush=True)

    def end(self) -> None:
        """The line is over."""
        print(self._decoder.decode(b"", final=True), flush=True)


def main() -> None:
    """Entry point."""
    given = options()
    network = load(given.model).to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = Tokenizer.load(given.model)
    sampler = Sampler(network, tokenizer, named(given.tool) if given.chat else None)
    starts = [
        prompt([Message(role="user", content=text)], tokenizer)
        if given.chat
        else tokenizer.encode(text) or [tokenizer.end_of_text]
        for text in given.prompt
    ]
    asked = [(text, ids) for text, ids in zip(given.prompt, starts, strict=True) for _ in range(given.samples)]
    drawn = seeds(f"{given.seed}:generate", len(asked))
    sampling = Sampling(given.tokens, given.temperature, given.top_k, given.top_p, given.min_p, tuple(given.stop))
    if given.stream:
        for (text, ids), seed in zip(asked, drawn, strict=True):
            print("" if given.chat else text, end="", flush=True)
            printer = Printer(tokenizer)
            sampler.sample([ids], sampling, [seed], stream=printer)
            printer.end()
    else:
        found = sampler.sample([ids for _, ids in asked], sampling, drawn)
        for (text, _), one in zip(asked, found, strict=True):
            print(("" if given.chat else text) + sampler.text(one), flush=True)


if __name__ == "__main__":
    errors.run(main)
