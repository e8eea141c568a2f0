"""Numbers in manifests that other rooms read, typed: of the stages below, these classes write and read them.

The numbers of models and evaluations are read by their names, with the functions at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.artifact import Published
from pipeline.errors import ArtifactError

# Numbers of a progress event that the terminal and the live page show.
PROGRESS = ("loss", "bits_per_byte", "reward", "sampled_accuracy", "tokens_per_second")


class Numbers(BaseModel):
    """Base of all; a manifest's other numbers are for people, and stay in `model_extra`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @classmethod
    def of(cls, published: Published) -> Self:
        """The numbers of an artifact. Raises `ArtifactError` where one is missing or of another type."""
        try:
            return cls.model_validate(published.content.numbers)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ArtifactError(
                f"the manifest of {published.folder} has no fitting number {key!r}: {first['msg']}",
                f"run {published.content.stage} again, with --force",
            ) from error

    def plain(self) -> dict[str, Any]:
        """The numbers as a manifest holds them, without those that were never set."""
        return self.model_dump(mode="json", exclude_unset=True)


class TokenizerNumbers(Numbers):
    """Of `tokenizer`: the number of ids, special tokens included, and the sha256 of `tokenizer.json`."""

    vocabulary: int
    sha256: str


class ShardNumbers(Numbers):
    """Of `shard`: the ids' `dtype`, the tokenizer's sha256, and the tokens of each split.

    `dtype` is `uint16`, or `int32` from 65,536 ids on. `…_bytes` are UTF-8 bytes of the tokenized texts,
    from which bits per byte are computed.
    """

    dtype: str
    vocabulary: int
    tokenizer: str
    train_tokens: int = 0
    train_bytes: int = 0
    validation_tokens: int = 0
    validation_bytes: int = 0


class CanaryNumbers(Numbers):
    """Of `canary`: the number of WARC files, what those that it read hold, and the folder of extract's artifact.

    `languages` counts texts by language. `pages`, `kept` and `languages` are 0 and empty where no file was read.
    """

    files: int
    canary_files: int
    extract: str
    pages: int = 0
    kept: int = 0
    dropped: dict[str, int] = {}
    languages: dict[str, int] = {}


def asked_tasks(numbers: Any) -> list[str]:
    """The tasks that an evaluation asked, by its numbers: each is `<task>.<number>`."""
    accuracies = [name for name in numbers or {} if name.endswith("_accuracy") and "." in name]
    return list(dict.fromkeys(name.rpartition(".")[0] for name in accuracies))


def progress_numbers(numbers: Mapping[str, Any], *more: str) -> dict[str, float]:
    """The numbers of a progress event that are shown: those of `PROGRESS`, and `more`.

    Beside a reward the loss is left out: that of a policy gradient has no unit, and does not fall while a model learns.
    """
    names = [name for name in (*PROGRESS, *more) if name != "loss" or "reward" not in numbers]
    return named(numbers, names)


def named(numbers: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """The numbers of these names, those of tasks (`<task>.<name>`) too, in the order of `names`."""
    return {
        full: value
        for name in names
        for full, value in numbers.items()
        if full.rpartition(".")[2] == name and isinstance(value, (int, float))
    }
