"""Compression, fertility and encoder speed of tokenizers: `make bench-tokenizer`.

    TIKTOKEN_CACHE_DIR=… python -m bench.tokenizer [--data ../shared/data]

Texts: English reference texts of the shared crawl, Wikipedia articles (WikiText-2), GPTeacher's answers. One text in
ten, by a hash of it, is not trained on, and is what the first table speaks of. Speed: CPU seconds of one thread over
all texts, read once before; the libraries see the same `tokenizer.json`, and their ids must be equal.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import fastokens
import numpy as np
import tiktoken
from tokenizers import Tokenizer as HfTokenizer

from jobs.page.words import words
from tokenizer import bpe

SIZES = (4_096, 32_768, 100_000)
_ARTICLE = "\n = "  # WikiText-2's headings of first rank


def texts(data: Path) -> Iterator[str]:
    """Real text of three kinds."""
    for line in gzip.decompress((data / "crawl/truth.jsonl.gz").read_bytes()).splitlines():
        row = json.loads(line)
        if row.get("text") and row.get("lid") == "en":
            yield row["text"]
    for split in ("valid", "test"):
        whole = gzip.decompress((data / f"text/wikitext-2.{split}.txt.gz").read_bytes()).decode()
        yield from (article for article in whole.split(_ARTICLE) if article.strip())
    for path in sorted((data / "conversations").glob("gpteacher.*.json.gz")):
        yield from (row["response"] for row in json.loads(gzip.decompress(path.read_bytes())) if row.get("response"))


def seconds(encode: Callable[[str], Sequence[int]], found: list[str]) -> tuple[float, list[list[int]]]:
    """CPU seconds to encode all texts after a first pass, and their ids."""
    for text in found:
        encode(text)
    started = time.process_time()
    ids = [encode(text) for text in found]
    return time.process_time() - started, [list(map(int, row)) for row in ids]


def encoders(source: bytes) -> dict[str, Callable[[str], Sequence[int]]]:
    """The libraries on one `tokenizer.json`. tiktoken is built from its ranks, which here are the ids."""
    data = json.loads(source)
    hf = HfTokenizer.from_str(source.decode())
    hf.encode_special_tokens = True
    fast = fastokens.Tokenizer.from_json_str(source.decode())
    letters = bpe._bytes_of_letters()
    added = {token["content"] for token in data["added_tokens"]}
    ranks = {
        bytes(letters[letter] for letter in token): rank
        for token, rank in data["model"]["vocab"].items()
        if token not in added
    }
    split = data["pre_tokenizer"].get("pretokenizers", [{}])[0].get("pattern", {}).get("Regex")
    gpt2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    tik = tiktoken.Encoding("bench", pat_str=split or gpt2, mergeable_ranks=ranks, special_tokens={})
    return {
        "tokenizers": lambda text: hf.encode(text, add_special_tokens=False).ids,
        "tiktoken": tik.encode_ordinary,
        "fastokens, to a list": lambda text: fast.encode(text, False, True).ids,
        "fastokens, to an array": lambda text: np.frombuffer(
            fast.encode_batch_flat([text], False, True)[0], dtype=np.uint32
        ),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared/data")
    found = list(texts(parser.parse_args().data))
    held_out = [text for text in found if zlib.crc32(text.encode()) % 10 == 0]
    trained = [text for text in found if zlib.crc32(text.encode()) % 10]
    size = sum(len(text.encode()) for text in held_out)
    count = sum(len(words(text)) for text in held_out)
    print(
        f"{sum(map(len, trained)) / 1e6:.1f} M characters to train on, {size / 1e6:.2f} MB held out, {count:,} words\n"
    )
    sources = {
        f"trained, {vocabulary:,}, {pattern}": bpe.train(trained, vocabulary, pattern)
        for vocabulary in SIZES
        for pattern in bpe.PATTERNS
    }
    sources |= {name: bpe.pretrained(name) for name in ("gpt2", "cl100k_base") if bpe.tiktoken_encoding(name)}
    print("| tokenizer | ids | bytes a token | tokens a word |\n|---|---:|---:|---:|")
    for name, source in sources.items():
        encoder = bpe.Tokenizer.from_bytes(source)
        tokens = sum(len(encoder.encode(text)) for text in held_out)
        print(f"| {name} | {encoder.vocabulary:,} | {size / tokens:.3f} | {tokens / count:.3f} |", flush=True)
    every = sum(len(text.encode()) for text in found) / 1e6
    print(f"\n| MB a CPU second, {every:.1f} MB | " + " | ".join(encoders(next(iter(sources.values())))) + " | ids |")
    print("|---|---:|---:|---:|---:|---|")
    for name, source in sources.items():
        if "32,768" in name:
            continue
        speeds, expected, same = [], None, True
        for encode in encoders(source).values():
            spent, ids = seconds(encode, found)
            speeds.append(f"{every / spent:.1f}")
            expected, same = expected or ids, same and (expected is None or ids == expected)
        print(f"| {name} | {' | '.join(speeds)} | {'identical' if same else 'DIFFERENT'} |", flush=True)


if __name__ == "__main__":
    main()
