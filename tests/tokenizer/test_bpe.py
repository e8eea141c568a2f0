"""Text <-> ids: round trips, parity with `tokenizers` and `transformers`, and pages that cannot forge a turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer

from pipeline.errors import ArtifactError, InputError, MachineError
from tokenizer import bpe, chat

TEXTS = [
    f"To install package {n}, run `make install` twice; it's {n * 37} kB.\n\n"
    f"  Don't panic: we've tested naïve café 数据 {n}."
    for n in range(300)
]
# Text that meets the corners of the split patterns: contractions, runs of digits, spaces and newlines, marks, scripts.
PIECES = [
    "'s",
    "'LL",
    "ſ",
    "don't",
    "12345",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u00a0",
    "\u3000",
    "!?",
    "é",
    "e\u0301",
    "数据",
]
PIECES += ["\u180e", "'ſ", "\x85", "\u2028", "İ", "=" * 40]
PIECES += [
    "🙂",
    "\u200b",
    "\ufeff",
    "\0",
    "<|im_end|>",
    "<|",
    "|>",
    "the",
    " The",
    "x_1",
    "٣٤",
    "Ⅷ",
    "a",
]
BPE = Path(__file__).parents[3] / "shared/data/bpe"  # files as tiktoken's cache names them
PLAIN = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=30).map("".join)
PLAIN = PLAIN.map(lambda text: text.encode("utf-8", "ignore").decode())  # no lone surrogates


@pytest.fixture(scope="module", params=list(bpe.PATTERNS))
def source(request: pytest.FixtureRequest) -> bytes:
    return bpe.train(TEXTS, 800, request.param)


def parity(source: bytes) -> HfTokenizer:
    """The same file in the library that trained it, special tokens in text switched off as in ours."""
    hf = HfTokenizer.from_str(source.decode())
    hf.encode_special_tokens = True
    return hf


@pytest.mark.parametrize("pattern", list(bpe.PATTERNS))
def test_any_text_comes_back_and_has_the_ids_of_tokenizers(pattern: str) -> None:
    source = bpe.train(TEXTS, 800, pattern)
    encoder, hf = bpe.Tokenizer.from_bytes(source), parity(source)

    @settings(max_examples=400, deadline=None)
    @given(PLAIN)
    def check(text: str) -> None:
        ids = encoder.encode(text)
        assert encoder.decode(ids) == text
        assert ids == hf.encode(text, add_special_tokens=False).ids
        assert max(ids, default=0) < encoder.vocabulary - len(chat.SPECIAL_TOKENS), "a page forged a special token"

    check()


def test_ids_of_real_text_are_those_of_tokenizers(source: bytes) -> None:
    text = "\n".join(path.read_text() for path in sorted(Path(bpe.__file__).parent.glob("*.py")))
    assert bpe.Tokenizer.from_bytes(source).encode(text) == parity(source).encode(text, add_special_tokens=False).ids


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=50))
def test_every_byte_has_an_id(data: bytes) -> None:
    encoder = SMALL
    singles = [byte_id(data[i : i + 1]) for i in range(len(data))]
    assert encoder.decode_bytes(singles) == data
    encoder.decode(singles)  # never an error, whatever a model samples


SMALL = bpe.Tokenizer.from_bytes(bpe.train(TEXTS[:20], 512, "qwen2"))


def byte_id(byte: bytes) -> int:
    return next(i for i in range(SMALL.vocabulary) if SMALL.decode_bytes([i]) == byte)


def test_bytes_that_are_no_utf8_decode_to_the_replacement_character() -> None:
    assert SMALL.decode([byte_id(b"\xc3")]) == "\ufffd"


def test_half_a_surrogate_pair_is_the_replacement_character() -> None:
    assert SMALL.decode(SMALL.encode("a\ud800b \ud83d\ude42")) == "a\ufffdb 🙂"


def test_digits_are_single_under_qwen2_and_in_threes_under_llama_bpe() -> None:
    texts = ["1234567 " * 50] * 20
    pieces = {}
    for pattern in bpe.PATTERNS:
        encoder = bpe.Tokenizer.from_bytes(bpe.train(texts, 512, pattern))
        pieces[pattern] = [encoder.decode([i]) for i in encoder.encode("1234567")]
    assert pieces == {"qwen2": list("1234567"), "llama-bpe": ["123", "456", "7"]}


def test_special_tokens_come_last_and_only_by_name(source: bytes) -> None:
    encoder = bpe.Tokenizer.from_bytes(source)
    ids = [encoder.special(token) for token in chat.SPECIAL_TOKENS]
    assert ids == list(range(encoder.vocabulary - len(ids), encoder.vocabulary))
    assert encoder.end_of_text == ids[0]
    assert encoder.decode(ids) == "".join(chat.SPECIAL_TOKENS)
    assert not set(encoder.encode("".join(chat.SPECIAL_TOKENS))) & set(ids)
    with pytest.raises(KeyError):
        encoder.special("<|user|>")


def test_training_depends_on_the_texts_alone() -> None:
    def texts() -> Iterator[str]:
        yield from reversed(TEXTS)

    assert bpe.train(TEXTS, 700, "qwen2") == bpe.train(texts(), 700, "qwen2")
    assert bpe.train(TEXTS, 700, "qwen2") != bpe.train([*TEXTS, "another text of other words"], 700, "qwen2")


def test_vocabulary_is_what_was_asked_or_what_the_texts_give() -> None:
    texts = [Path(bpe.__file__).read_text()]
    assert bpe.Tokenizer.from_bytes(bpe.train(texts, 600, "qwen2")).vocabulary == 600
    assert bpe.Tokenizer.from_bytes(bpe.train(["ab"], 600, "qwen2")).vocabulary == 256 + 1 + len(chat.SPECIAL_TOKENS)


@pytest.mark.parametrize(
    "damaged", [b"", b"{}", b"\xff", b"[]", b'{"added_tokens": [], "model": {"vocab": {"\\u4e00": 0}}}']
)
def test_another_file_is_refused(damaged: bytes) -> None:
    with pytest.raises(ArtifactError):
        bpe.Tokenizer.from_bytes(damaged)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        bpe.Tokenizer.load(tmp_path)


MESSAGES: list[chat.Message] = [
    {"role": "system", "content": "You are brief.\n"},
    {"role": "user", "content": " What is 47 + 85? Don't   guess."},
    {"role": "assistant", "content": "132"},
]


def test_transformers_loads_it_and_renders_the_same_conversation(source: bytes, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    encoder = bpe.Tokenizer.from_bytes(source)
    encoder.write_hf(tmp_path, 512)
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (hf.eos_token, hf.pad_token, hf.model_max_length) == (chat.IM_END, chat.PAD, 512)
    assert hf.pad_token_id != hf.eos_token_id == encoder.special(chat.IM_END)
    assert len(hf) == encoder.vocabulary
    assert set(hf.all_special_ids) == {encoder.special(token) for token in chat.SPECIAL_TOKENS}
    assert hf(TEXTS[0])["input_ids"] == encoder.encode(TEXTS[0])
    assert hf.decode(encoder.encode(TEXTS[0])) == TEXTS[0]
    rendered = hf.apply_chat_template(MESSAGES, return_dict=False)
    assert rendered == chat.render(MESSAGES, encoder).ids
    prompt = hf.apply_chat_template(MESSAGES[:2], add_generation_prompt=True, return_dict=False)
    assert prompt == chat.prompt(MESSAGES[:2], encoder)
    assert bpe.Tokenizer.load(tmp_path).sha256 == encoder.sha256


def test_a_pretrained_tokenizer_needs_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    with pytest.raises(MachineError, match="TIKTOKEN_CACHE_DIR"):
        bpe.pretrained("gpt2")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))  # a folder, but without them: nothing is downloaded
    with pytest.raises(MachineError, match="TIKTOKEN_CACHE_DIR"):
        bpe.pretrained("cl100k_base")


def test_a_package_may_hold_a_pretrained_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tiktoken_ext").mkdir()
    (tmp_path / "tiktoken_ext" / "carried.py").write_text(
        "ranks = {bytes([i]): i for i in range(256)} | {b'ab': 256}\n"
        "one = {'name': 'gpt2_offline', 'pat_str': '.', 'mergeable_ranks': ranks, 'special_tokens': {}}\n"
        "ENCODING_CONSTRUCTORS = {'gpt2_offline': lambda: one}\n"
    )
    code = "from tokenizer import bpe; print(bpe.Tokenizer.from_bytes(bpe.pretrained('gpt2')).encode('xab'))"
    env = {name: value for name, value in os.environ.items() if name != "TIKTOKEN_CACHE_DIR"}
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(Path(bpe.__file__).parents[1])])
    said = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
    assert said == "[120, 256]\n"


@pytest.fixture
def tiktoken_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """`TIKTOKEN_CACHE_DIR` holds the files of gpt2 and cl100k_base; the test is skipped on a machine without them."""
    if "TIKTOKEN_CACHE_DIR" not in os.environ:
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(BPE))
    if missing := [name for name in ("gpt2", "cl100k_base") if bpe.tiktoken_encoding(name) is None]:
        pytest.skip(f"neither TIKTOKEN_CACHE_DIR nor {BPE} holds {' and '.join(missing)}")


@pytest.mark.usefixtures("tiktoken_files")
@pytest.mark.parametrize("name", ["gpt2", "cl100k_base"])
def test_a_pretrained_tokenizer_keeps_its_ids_in_both_libraries(name: str) -> None:
    source, known = bpe.pretrained(name), bpe.tiktoken_encoding(name)
    assert known is not None
    encoder, hf = bpe.Tokenizer.from_bytes(source), parity(source)
    assert (
        encoder.vocabulary == {"gpt2": 50_257 + 40, "cl100k_base": 100_277 + 24}[name]
    )  # eight ids of GPT-4 were free
    assert encoder.end_of_text == known.eot_token
    assert max(known._mergeable_ranks.values()) < min(map(encoder.special, chat.SPECIAL_TOKENS))
    every = range(encoder.vocabulary)
    assert all(encoder.decode_bytes([i]) == known.decode_single_token_bytes(i) for i in known._mergeable_ranks.values())
    assert encoder.decode_bytes(every).endswith(b"".join(encoder.decode_bytes([i]) for i in every[-9:]))

    @settings(max_examples=300, deadline=None)
    @given(PLAIN)
    def check(text: str) -> None:
        ids = known.encode_ordinary(text)
        assert encoder.encode(text) == ids
        assert hf.encode(text, add_special_tokens=False).ids == ids
        assert encoder.decode(ids) == text

    check()
    text = " ".join(TEXTS)
    assert hf.encode(text, add_special_tokens=False).ids == encoder.encode(text) == known.encode_ordinary(text)


def folder_with(tmp_path: Path, **changes: object) -> Path:
    """A tokenizer directory as other projects write it: other special tokens, a token at the front."""
    hf = HfTokenizer.from_str(bpe.train(TEXTS, 700, "llama-bpe").decode())
    data = json.loads(hf.to_str())
    data["added_tokens"] = [token | {"content": f"<{n}>"} for n, token in enumerate(data["added_tokens"][:2])]
    data["added_tokens"][1]["content"] = chat.END_OF_TEXT
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / bpe.FILE).write_text(json.dumps(data | changes))
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}},
    ],
)
def test_a_directory_keeps_its_ids_and_gets_our_special_tokens(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = folder_with(tmp_path, **changes)
    before = HfTokenizer.from_file(str(folder / bpe.FILE))
    source = bpe.pretrained(str(folder))
    encoder, hf = bpe.Tokenizer.from_bytes(source), parity(source)
    assert encoder.special("<0>") == before.token_to_id("<0>")
    assert encoder.end_of_text == before.token_to_id(chat.END_OF_TEXT)  # it has that one already
    assert encoder.vocabulary == before.get_vocab_size() + len(chat.SPECIAL_TOKENS) - 1

    @settings(max_examples=100, deadline=None)
    @given(PLAIN.filter(lambda text: "<0>" not in text and chat.END_OF_TEXT not in text))
    def check(text: str) -> None:
        ids = encoder.encode(text)
        assert ids == before.encode(text).ids == hf.encode(text).ids
        assert encoder.decode(ids) == (before.normalizer.normalize_str(text) if before.normalizer else text)

    check()
    assert encoder.special("<0>") not in encoder.encode("<0>")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"type": "Unigram", "vocab": {}}}, "Unigram"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "Metaspace"),
        ({"added_tokens": None}, "byte-level BPE"),
    ],
)
def test_another_kind_of_directory_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=f"tokenizer.json: not a.*{said}"):
        bpe.pretrained(str(folder_with(tmp_path / "other", **changes)))
    with pytest.raises(InputError, match=r"nowhere.*tokenizer\.json cannot be read"):
        bpe.pretrained(str(tmp_path / "nowhere"))
    (tmp_path / bpe.FILE).write_bytes((folder_with(tmp_path / "plain") / bpe.FILE).read_bytes())
    with pytest.raises(ArtifactError, match="im_start"):
        bpe.Tokenizer.load(tmp_path)
