"""Shared by all rooms: an S3 server on this machine, and the files of given tokenizers where they lie beside us."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tokenizer import bpe

BPE = Path(__file__).parents[2] / "shared/data/bpe"  # as tiktoken's cache names them


@pytest.fixture
def given_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`TIKTOKEN_CACHE_DIR` holds the files of gpt2 and cl100k_base; skipped where nobody has them."""
    if "TIKTOKEN_CACHE_DIR" not in os.environ:
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(BPE))
    if missing := [name for name in ("gpt2", "cl100k_base") if bpe.cached(name) is None]:
        pytest.skip(f"neither TIKTOKEN_CACHE_DIR nor {BPE} holds {' and '.join(missing)}")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an empty bucket; the environment names its server."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="crawl")
    yield "s3://crawl"
    server.stop()
