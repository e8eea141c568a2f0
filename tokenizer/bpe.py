"""Byte-level BPE: trained with `tokenizers`, encoded with `tiktoken`, which gives the same ids many times faster."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import tiktoken
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HfTokenizer

from pipeline.errors import ArtifactError, MachineError
from tokenizer.chat import CHAT_TEMPLATE, END_OF_TEXT, IM_END, PAD, SPECIAL_TOKENS

# The split patterns that llama.cpp implements under these names: GPT-4's (cl100k_base), and Qwen2's, which differs in
# keeping digits single.
PATTERNS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
# GPT-2's split pattern, and which files tiktoken's cache holds for each tokenizer (tiktoken_ext/openai_public.py).
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PUBLIC = "https://openaipublic.blob.core.windows.net"
_GIVEN = {
    "gpt2": (_GPT2, (f"{_PUBLIC}/gpt-2/encodings/main/vocab.bpe", f"{_PUBLIC}/gpt-2/encodings/main/encoder.json")),
    "cl100k_base": (PATTERNS["llama-bpe"], (f"{_PUBLIC}/encodings/cl100k_base.tiktoken",)),
}
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
    """A trained tokenizer. Special tokens in plain text are ordinary bytes: a page cannot forge a turn."""

    def __init__(self, ranks: dict[bytes, int], special: dict[str, int], pattern: str, source: bytes) -> None:
        self._special = special
        self._encoding = tiktoken.Encoding("crawl2chat", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        self._source = source
        self.vocabulary = len(ranks) + len(special)
        self.sha256 = hashlib.sha256(source).hexdigest()

    @classmethod
    def from_bytes(cls, source: bytes) -> Tokenizer:
        """From the bytes of a `tokenizer.json` that `train` made."""
        try:
            data = json.loads(source)
            letters = _bytes_of_letters()
            special = {token["content"]: int(token["id"]) for token in data["added_tokens"]}
            ranks = {
                bytes(letters[letter] for letter in token): int(rank)
                for token, rank in data["model"]["vocab"].items()
                if token not in special
            }
            pattern = data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ArtifactError(
                f"not a byte-level BPE tokenizer.json of ours ({error!r})", "run the tokenizer stage again"
            ) from error
        return cls(ranks, special, pattern, source)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """From a folder that holds `tokenizer.json`."""
        path = folder / FILE
        if not path.exists():
            raise ArtifactError(f"{path} does not exist", "name a folder that the tokenizer stage or an export wrote")
        return cls.from_bytes(path.read_bytes())

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, on one thread."""
        return [self._encoding.encode_ordinary(text) for text in texts]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes behind ids; special tokens give their names."""
        return self._encoding.decode_bytes(list(ids))

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
            "additional_special_tokens": [token for token in SPECIAL_TOKENS if token not in (IM_END, PAD)],
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        return {FILE: self._source, "tokenizer_config.json": json.dumps(config, indent=1, sort_keys=True).encode()}

    def write_hf(self, folder: Path, window: int) -> None:
        """Write `hf_files` into a folder."""
        for name, data in self.hf_files(window).items():
            (folder / name).write_bytes(data)


def cached(name: str) -> tiktoken.Encoding | None:
    """`gpt2` or `cl100k_base` from tiktoken's cache, or None where `TIKTOKEN_CACHE_DIR` does not hold its files.

    Nothing is downloaded: tiktoken itself would.
    """
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", "")
    files = [Path(folder) / hashlib.sha1(url.encode()).hexdigest() for url in _GIVEN[name][1]]
    return tiktoken.get_encoding(name) if folder and all(file.is_file() for file in files) else None


def given(name: str) -> bytes:
    """`tokenizer.json` of `gpt2` or `cl100k_base` with our special tokens after its own ids."""
    encoding = cached(name)
    if encoding is None:
        raise MachineError(
            f"tokenizer {name!r} needs tiktoken's cached files", "set TIKTOKEN_CACHE_DIR to a folder that holds them"
        )
    letters = {byte: letter for letter, byte in _bytes_of_letters().items()}
    ranks: dict[bytes, int] = encoding._mergeable_ranks

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [_parents(token, ranks) for token, _ in sorted(ranks.items(), key=lambda item: item[1]) if len(token) > 1]
    first = max(ranks.values()) + 1
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": first + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": True}
            for i, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                # Not tiktoken's own spelling: its possessive `{1,3}+` is a repeated group to `tokenizers` (Oniguruma).
                {"type": "Split", "pattern": {"Regex": _GIVEN[name][0]}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
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
    return json.dumps(data).encode()


def _parents(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that merge into this one, found by running BPE with the ranks below its own."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        rank, i = min((ranks.get(parts[i] + parts[i + 1], 1 << 60), i) for i in range(len(parts) - 1))
        if rank >= ranks[token]:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], b"".join(parts[1:])
