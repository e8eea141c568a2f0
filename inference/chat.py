"""Talk to the assistant of a run in the terminal: `make chat`.

    python -m inference.chat --root .crawl2chat/data --temperature 0.8

It loads the last model of the run that answers messages, with the tools it was trained with; by default of the newest
run. A line is a message. `/new` begins another conversation, `/quit` or Ctrl-D ends.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator

from inference.network import load_on_device
from inference.sampler import Sampler, Sampling, seeds
from inference.tools import load_tools
from pipeline import artifact, command, errors
from pipeline.artifact import Published
from pipeline.errors import ArtifactError
from pipeline.stages import MODELS
from pipeline.storage import Storage
from pipeline.terminal import show
from tokenizer.bpe import Tokenizer
from tokenizer.chat import Message, prompt, readable

ASSISTANTS = tuple(step.name for step in reversed(MODELS[1:]))  # the base model only continues texts
MAX_NEW_TOKENS = 128


def assistant(storage: Storage, run: str | None, step: str | None) -> Published:
    """The last model of a run that answers messages. Raises `ArtifactError` where there is none."""
    for name in [step] if step else ASSISTANTS:
        runs = [run] if run else artifact.runs_with(storage, name)
        pointer = artifact.pointer(storage, runs[-1], name) if runs else None
        if pointer is not None and pointer.state in ("published", "reused"):
            return artifact.read(storage, pointer.folder)
    where = f"run {run} below {storage.root}" if run else storage.root
    raise ArtifactError(f"{where} holds no assistant", "fine-tune one first: make run")


class Conversation:
    """A conversation with an assistant, of which the oldest turns are forgotten where they no longer fit."""

    def __init__(self, sampler: Sampler, sampling: Sampling, seed: int) -> None:
        self.sampler, self.sampling, self.seed = sampler, sampling, seed
        self.messages: list[Message] = []

    def answer(self, text: str) -> str:
        """The assistant's answer to a message."""
        self.messages.append(Message(role="user", content=text))
        ids = prompt(self.messages, self.sampler.tokenizer)
        while len(ids) + self.sampling.max_new_tokens > self.sampler.window and len(self.messages) > 2:
            del self.messages[:2]
            ids = prompt(self.messages, self.sampler.tokenizer)
        [seed] = seeds(f"{self.seed}:chat:{len(self.messages)}", 1)
        [sample] = self.sampler.sample([ids], self.sampling, [seed])
        answer = self.sampler.text(sample)
        self.messages.append(Message(role="assistant", content=readable(answer)))
        return readable(answer).strip()


def converse(conversation: Conversation, lines: Iterable[str]) -> Iterator[str]:
    """The answers to lines of text, until `/quit` or the last one."""
    for line in map(str.strip, lines):
        if line == "/quit":
            return
        if line == "/new":
            conversation.messages.clear()
            yield "(a new conversation)"
        elif line:
            yield conversation.answer(line)


def typed() -> Iterator[str]:
    """Lines as they are typed, with a prompt where somebody types."""
    while True:
        try:
            yield input("you        " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_root(parser)
    parser.add_argument("--run", help="name of the run; by default the newest")
    parser.add_argument("--step", choices=ASSISTANTS, help="the model of this step; by default the run's last")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    published = assistant(Storage(options.root), options.run, options.step)
    folder = published.storage.local_path(published.folder)
    tools = load_tools(published.content.recipe.get("assistant", {}).get("tools", []))
    print(f"{published.folder}; tools: {', '.join(tools) or 'none'}. /new begins another conversation, /quit ends.")
    sampler = Sampler(load_on_device(folder), Tokenizer.load(folder), tools)
    conversation = Conversation(sampler, Sampling(MAX_NEW_TOKENS, options.temperature), options.seed)
    for answer in converse(conversation, typed()):
        show([f"assistant  {answer}"])


if __name__ == "__main__":
    errors.run(main)
