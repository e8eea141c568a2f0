"""Compression, fertility and encoder speed of tokenizers: `make bench-tokenizer`.

    TIKTOKEN_CACHE_DIR=… python -m bench.tokenizer [--data ../shared/data]

Texts: English reference texts of the shared crawl, Wikipedia articles (WikiText-2), GPTeacher's answers. One text in
ten, by its hash, is held out from training; the first table is measured on these. Speed, the second table: CPU seconds
of one thread over all texts, which each library has encoded once before; all get the same `tokenizer.json`, and their
ids must be equal.
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

from bench.folders import DATA
from jobs.page.words import words
from tokenizer import bpe

SIZES = (4_096, 32_768, 100_000)
_ARTICLE = "\n = "  # how WikiText-2's headings of articles begin; sections have more signs


def texts(data: Path) -> Iterator[str]:
    """Real texts: pages, articles, answers."""
    for line in gzip.decompress((data / "crawl/truth.jsonl.gz").read_bytes()).splitlines():
        row = json.loads(line)
        if row.get("text") and row.get("lid") == "en":
            yield row["text"]
    for split in ("valid", "test"):
        whole = gzip.decompress((data / f"text/wikitext-2.{split}.txt.gz").read_bytes()).decode()
        yield from (article for article in whole.split(_ARTICLE) if article.strip())
    for path in sorted((data / "conversations").glob("gpteacher.*.json.gz")):
        yield from (row["response"] for row in json.loads(gzip.decompress(path.read_bytes())) if row.get("response"))


def seconds(encode: Callable[[str], Sequence[int]], corpus: list[str]) -> tuple[float, list[list[int]]]:
    """CPU seconds to encode all texts after a first pass, and their ids."""
    for text in corpus:  # fills the caches of words, as in a long run
        encode(text)
    started = time.process_time()
    ids = [encode(text) for text in corpus]
    return time.process_time() - started, [list(map(int, row)) for row in ids]


def encoders(source: bytes) -> dict[str, Callable[[str], Sequence[int]]]:
    """Each library's encoder of one `tokenizer.json`."""
    data = json.loads(source)
    hf = HfTokenizer.from_str(source.decode())
    hf.encode_special_tokens = True  # a special token's name in a text is text
    fast = fastokens.Tokenizer.from_json_str(source.decode())
    # tiktoken takes bytes and ranks: the vocabulary's letters stand for bytes, and its ids serve as ranks.
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
    parser.add_argument("--data", type=Path, default=DATA)
    # 1. The texts, a tenth of them held out.
    corpus = list(texts(parser.parse_args().data))
    held_out = [text for text in corpus if zlib.crc32(text.encode()) % 10 == 0]
    trained = [text for text in corpus if zlib.crc32(text.encode()) % 10]
    size = sum(len(text.encode()) for text in held_out)
    count = sum(len(words(text)) for text in held_out)
    print(
        f"{sum(map(len, trained)) / 1e6:.1f} M characters to train on, {size / 1e6:.2f} MB held out, {count:,} words\n"
    )
    # 2. Compression of tokenizers trained here, and of published ones that are in tiktoken's cache.
    sources = {
        f"trained, {vocabulary:,}, {pattern}": bpe.train(trained, vocabulary, pattern)
        for vocabulary in SIZES
        for pattern in bpe.PATTERNS
    }
    sources |= {name: bpe.pretrained(name) for name in ("gpt2", "cl100k_base") if bpe.tiktoken_encoding(name)}
    print("| tokenizer | ids | bytes per token | tokens per word |\n|---|---:|---:|---:|")
    for name, source in sources.items():
        encoder = bpe.Tokenizer.from_bytes(source)
        tokens = sum(len(encoder.encode(text)) for text in held_out)
        print(f"| {name} | {encoder.vocabulary:,} | {size / tokens:.3f} | {tokens / count:.3f} |", flush=True)
    # 3. Speed, of the smallest and the largest vocabulary trained here, and of the published ones.
    megabytes = sum(len(text.encode()) for text in corpus) / 1e6
    libraries = " | ".join(encoders(next(iter(sources.values()))))
    print(f"\n| MB per CPU second, {megabytes:.1f} MB | {libraries} | ids |")
    print("|---|---:|---:|---:|---:|---|")
    for name, source in sources.items():
        if "32,768" in name:
            continue
        speeds, expected, same = [], None, True
        for encode in encoders(source).values():
            spent, ids = seconds(encode, corpus)
            speeds.append(f"{megabytes / spent:.1f}")
            expected = expected or ids  # the first library's
            same &= ids == expected
        print(f"| {name} | {' | '.join(speeds)} | {'identical' if same else 'DIFFERENT'} |", flush=True)


if __name__ == "__main__":
    main()
