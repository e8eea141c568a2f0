"""Generate from a published model: continuations of a text, or an assistant's answers.

    python -m inference.generate --model .crawl2chat/data/rl/all/… --chat --tool calculator --prompt "What is 47 + 85?"
    python -m inference.generate --model … --prompt "The" --samples 4 --temperature 0.8 --min-p 0.05

`--model` is a folder in the layout of `transformers` that a training stage published. The same seed samples the same.
"""

from __future__ import annotations

import argparse
import codecs
from pathlib import Path

from inference.network import load_on_device
from inference.sampler import Sampler, Sampling, seeds
from inference.tools import load_tools
from pipeline import errors
from pipeline.terminal import plain, show
from tokenizer.bpe import Tokenizer
from tokenizer.chat import IM_END, Message, prompt


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a published model")
    parser.add_argument("--prompt", action="append", required=True, help="repeat it for several prompts")
    parser.add_argument(
        "--chat", action="store_true", help="each prompt is a user's message in a conversation of its own"
    )
    parser.add_argument("--tool", action="append", default=[], help="with --chat: a tool that the model may call")
    parser.add_argument(
        "--stream", action="store_true", help="print each token as it is sampled, one sample after another"
    )
    parser.add_argument("--samples", type=int, default=1, help="samples per prompt")
    parser.add_argument("--tokens", type=int, default=128, help="largest number of new tokens per sample")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("--top-k", type=int, default=0, help="sample from the k likeliest tokens only; 0: from all")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling; 1: off")
    parser.add_argument("--min-p", type=float, default=0.0, help="least probability, relative to the largest")
    parser.add_argument("--stop", action="append", default=[], help="a text that ends a sample")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


class Printer:
    """Prints ids as text while they are sampled; a character appears once its last byte has been sampled."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._decoder = tokenizer, codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._silent = {tokenizer.special(IM_END), tokenizer.end_of_text}

    def __call__(self, row: int, token: int) -> None:
        """Print one id (the callback `stream` of `Sampler.sample`); the end of a turn prints nothing."""
        if token not in self._silent:
            print(plain(self._decoder.decode(self._tokenizer.decode_bytes([token]))), end="", flush=True)

    def end(self) -> None:
        """Print what is left of an incomplete character, and end the line."""
        print(self._decoder.decode(b"", final=True), flush=True)


def main() -> None:
    """Entry point."""
    args = options()
    network = load_on_device(args.model)
    tokenizer = Tokenizer.load(args.model)
    sampler = Sampler(network, tokenizer, load_tools(args.tool) if args.chat else None)
    encoded = [
        prompt([Message(role="user", content=text)], tokenizer) if args.chat else tokenizer.encode_prompt(text)
        for text in args.prompt
    ]
    rows = [(text, ids) for text, ids in zip(args.prompt, encoded, strict=True) for _ in range(args.samples)]
    row_seeds = seeds(f"{args.seed}:generate", len(rows))
    sampling = Sampling(args.tokens, args.temperature, args.top_k, args.top_p, args.min_p, tuple(args.stop))
    if args.stream:
        # One row at a time, since a terminal shows one; a row samples the same alone as in a batch.
        for (text, ids), seed in zip(rows, row_seeds, strict=True):
            print("" if args.chat else text, end="", flush=True)
            printer = Printer(tokenizer)
            sampler.sample([ids], sampling, [seed], stream=printer)
            printer.end()
    else:
        samples = sampler.sample([ids for _, ids in rows], sampling, row_seeds)
        for (text, _), sample in zip(rows, samples, strict=True):
            show([("" if args.chat else text) + sampler.text(sample)])


if __name__ == "__main__":
    errors.run(main)
