"""All that a recipe reads from elsewhere, checked before a run starts by `make run` and by the task `resolve`.

A run costs a JVM before its first stage opens a file, and days before fine-tuning does. So what can be seen without
reading a file whole is seen here, and all that is missing is named at once: globs and lists, crawl ids, block list,
take-down and evaluation sets, tokenizer, weights, conversations, benchmarks, artifacts of other runs.
"""

from __future__ import annotations

import glob
import gzip
import http.client
import json
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import available, locations
from pipeline.artifact import MANIFEST
from pipeline.available import BUILTIN
from pipeline.errors import InputError
from pipeline.lines import is_json
from pipeline.recipe import Input, Recipe
from pipeline.storage import Storage

_GONE = (404, 410)
_SECONDS = 10.0  # for a server's answer; a slow one is left to extract, which asks again and again
_PROBED = 8  # URLs of a recipe that are asked for; a longer list is a crawl's, and extract names what fails
COMMIT = "commit.json"  # written last into a checkpoint of training: without it there is none


@dataclass(frozen=True)
class Problem:
    """`key` of the recipe names `what` is missing."""

    key: str
    what: str
    remedy: str


def check(recipe: Recipe, storage: Storage, sections: Collection[str] | None = None) -> list[str]:
    """Raise `InputError` with all that is missing of what these sections of a recipe read, or of what all do.

    `input` belongs to the section `extract`. Relative paths start from the working folder, folders of artifacts from
    the root. Returns a line for each thing that could not be checked, as where a server does not answer.
    """
    unchecked: list[str] = []
    problems: list[Problem] = []
    if sections is None or "extract" in sections:
        problems += _archives(recipe.input, unchecked)
    for section, find in _FINDERS.items():
        if sections is None or section in sections:
            problems += find(recipe, storage)
    if problems:
        remedies = dict.fromkeys(problem.remedy for problem in problems)
        raise InputError("\n".join(f"{problem.key}: {problem.what}" for problem in problems), "; ".join(remedies))
    return unchecked


def _archives(section: Input, unchecked: list[str]) -> Iterator[Problem]:
    """Entries that match nothing, and what a server does not have."""
    if section.crawl:
        url = locations.of_crawl(section.crawl)
        remedy = "choose an id of https://index.commoncrawl.org, such as CC-MAIN-2025-05"
        yield from _absent("input.crawl", url, f"there is no crawl {section.crawl}: {url}", remedy, unchecked)
    probed = 0
    for entry in section.warcs:
        try:
            urls = [location for location in locations.expand(entry) if location.startswith("http")]
        except InputError as error:
            yield Problem("input.warcs", error.what, error.remedy)
            continue
        for url in urls[: _PROBED - probed]:
            yield from _absent("input.warcs", url, url, "check the URL", unchecked)
            probed += 1


def _absent(key: str, url: str, what: str, remedy: str, unchecked: list[str]) -> Iterator[Problem]:
    """A problem if a server says that it has no such file. Any other refusal may pass: it is `unchecked`."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code in _GONE:
            yield Problem(key, f"{what} answers {error.code}", remedy)
        else:
            unchecked.append(f"{key}: {url} answers {error.code}")
    except (OSError, http.client.HTTPException) as error:
        unchecked.append(f"{key}: {url} cannot be reached: {getattr(error, 'reason', error)}")


def _file(key: str, path: str, where: str = "") -> Iterator[Problem]:
    """A problem if `path` is no file that can be read."""
    name = f"{path}{where}"
    if not Path(path).exists():
        yield Problem(key, f"{name} does not exist", _here())
    elif Path(path).is_dir():
        yield Problem(key, f"{name} is a folder", "name a file")
    elif not os.access(path, os.R_OK):
        yield Problem(key, f"{name} cannot be read", "correct its permissions")


def _json_lines(key: str, path: str, where: str = "") -> Iterator[Problem]:
    """As `_file`, for JSON lines: the first line is read, and the stage names any other that is wrong."""
    if problems := [*_file(key, path, where)]:
        yield from problems
        return
    with Path(path).open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else Path(path).open("rb") as stream:
            line = next(filter(bytes.strip, stream), b"")
        json.loads(line.decode("utf-8-sig"))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        what = f"{path}{where} does not begin with a line of JSON: {error}"
        yield Problem(key, what, "name a file of JSON lines, gzipped or plain")


def _folder(key: str, path: str, *holds: str) -> Iterator[Problem]:
    """A problem if `path` is no folder, or lacks a file of each of these patterns."""
    if not Path(path).is_dir():
        yield Problem(key, f"{path} is no folder", _here())
    elif missing := [pattern for pattern in holds if not glob.glob(f"{glob.escape(path)}/{pattern}")]:
        yield Problem(key, f"{path} holds no {', no '.join(missing)}", "name another folder")


def _here() -> str:
    return f"check the path (working folder: {os.getcwd()})"


def _builtin(key: str, source: str, names: tuple[str, ...]) -> Iterator[Problem]:
    """As `_file`, for a file or one of the sets that come with the project."""
    if not source.startswith(BUILTIN):
        yield from _json_lines(key, source)
    elif source.removeprefix(BUILTIN) not in names:
        known = ", ".join(BUILTIN + name for name in names)
        yield Problem(key, f"{source} is none of the project's sets", f"name a file or one of {known}")


def _below(key: str, folder: str, file: str, what: str, storage: Storage) -> Iterator[Problem]:
    """A problem if `folder`, below the root, does not hold `file`, and so is not `what` it should be."""
    if "://" in folder or {"", ".", ".."} & {*folder.split("/")}:
        yield Problem(key, f"{folder!r} is no path below {storage.root}", "name it relative to the root")
    elif not storage.exists(f"{folder}/{file}"):
        yield Problem(key, f"{storage.path(folder)} is no {what}", f"name a folder below the root that holds {file}")


def _artifacts(key: str, folders: Collection[str], storage: Storage) -> Iterator[Problem]:
    for folder in folders:
        yield from _below(key, folder, MANIFEST, "artifact", storage)


def _extract(recipe: Recipe, storage: Storage) -> Iterator[Problem]:
    section, lists = recipe.extract, recipe.extract.block_list
    if lists.source != "ut1":
        wanted = [f"{category}/domains" for category in lists.categories] or ["*/domains"]
        yield from _folder("extract.block_list", lists.source, *wanted)
    for name in ("words", "soft_words", "sub_words"):
        for entry in getattr(lists, name):
            if entry.startswith("file:"):
                yield from _file(f"extract.block_list.{name}", entry.removeprefix("file:"))
    if section.quality_model:
        yield from _file("extract.quality_model", section.quality_model)


def _deduplicate(recipe: Recipe, storage: Storage) -> Iterator[Problem]:
    yield from _artifacts("deduplicate.against", recipe.deduplicate.against, storage)


def _redact(recipe: Recipe, storage: Storage) -> Iterator[Problem]:
    if recipe.redact.person_model:
        yield from _folder("redact.person_model", recipe.redact.person_model, "meta.json")


def _decontaminate(recipe: Recipe, storage: Storage) -> Iterator[Problem]:
    for name in ("sets", "take_down"):
        for file in getattr(recipe.decontaminate, name):
            find = _json_lines if name == "sets" and is_json(file) else _file
            yield from find(f"decontaminate.{name}", file)


def _tokenizer(recipe: Recipe, storage: Storage) -> Iterator[Problem]:
    if "/" in recipe.tokenizer.source:
        yield from _folder("tokenizer.source", recipe.tokenizer.source, "tokenizer.json")


def _shard(recipe: Recipe, storage: Storage) -> Iterator[Problem]:
    yield from _artifacts("shard.mix", recipe.shard.mix, storage)


def _pretrain(recipe: Recipe, storage: Storage) -> Iterator[Problem]:
    section = recipe.pretrain
    if section.weights:
        yield from _folder("pretrain.weights", section.weights, "config.json", "tokenizer.json", "*.safetensors")
    if section.continue_from:
        yield from _below("pretrain.continue_from", section.continue_from, COMMIT, "complete checkpoint", storage)
    yield from _artifacts("pretrain.mix", section.mix, storage)


def _sft(recipe: Recipe, storage: Storage) -> Iterator[Problem]:
    for source in recipe.sft.conversations:
        yield from _builtin("sft.conversations", source, available.conversations())


def _evaluation(recipe: Recipe, storage: Storage) -> Iterator[Problem]:
    for benchmark in recipe.evaluation.benchmarks:
        for file in filter(None, (benchmark.file, benchmark.examples)):
            yield from _json_lines("evaluation.benchmarks", file, f" (benchmark {benchmark.name})")
    for source in recipe.evaluation.demonstrations:
        yield from _builtin("evaluation.demonstrations", source, available.demonstrations())


_Finder = Callable[[Recipe, Storage], Iterator[Problem]]
_FINDERS: dict[str, _Finder] = {
    "extract": _extract,
    "deduplicate": _deduplicate,
    "redact": _redact,
    "decontaminate": _decontaminate,
    "tokenizer": _tokenizer,
    "shard": _shard,
    "pretrain": _pretrain,
    "sft": _sft,
    "evaluation": _evaluation,
}
