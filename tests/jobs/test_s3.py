"""WARC files in S3: an S3 server on this machine, real requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from jobs import sources
from pipeline.errors import InputError
from pipeline.recipe import Input
from tests.jobs.conftest import REPOSITORY

SAMPLE = sorted((REPOSITORY / "tests/data/sample").glob("*.warc.gz"))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket that holds the sample and a list of its files."""
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
    client = boto3.client("s3")
    client.create_bucket(Bucket="crawl")
    for file in SAMPLE:
        client.put_object(Bucket="crawl", Key=f"x/{file.name}", Body=file.read_bytes())
    client.put_object(Bucket="crawl", Key="x/warc.paths", Body="\n".join(file.name for file in SAMPLE).encode())
    yield "s3://crawl/x"
    server.stop()


def find(*warcs: str) -> list[sources.Source]:
    return sources.find(Input(warcs=list(warcs), crawl=None, max_warcs=None))


def test_patterns_lists_and_keys_name_the_same_files(bucket: str) -> None:
    found = find(f"{bucket}/*.warc.gz")
    assert [source.name for source in found] == [file.name for file in SAMPLE]
    assert find(f"{bucket}/warc.paths") == find(*(f"{bucket}/{file.name}" for file in SAMPLE)) == found
    assert found[0].content.startswith(f"{SAMPLE[0].name}:{SAMPLE[0].stat().st_size}-")


def test_what_is_not_there_is_named(bucket: str) -> None:
    for given in (f"{bucket}/nothing-*.gz", f"{bucket}/nothing.warc.gz", "s3://nobody/x.warc.gz"):
        with pytest.raises(InputError, match=r"nothing|nobody"):
            find(given)


def test_a_download_is_the_file_and_goes_on_where_it_ended(bucket: str, tmp_path: Path) -> None:
    location, whole = f"{bucket}/{SAMPLE[0].name}", SAMPLE[0].read_bytes()
    sources.local_path(location, tmp_path).write_bytes(whole[:100_000])
    assert list(sources.fetch(location, tmp_path))[-1] == len(whole)
    assert sources.local_path(location, tmp_path).read_bytes() == whole


def test_a_record_is_read_at_its_offset(bucket: str) -> None:
    with sources.open_at(f"{bucket}/{SAMPLE[0].name}", 1000, 50) as stream:
        assert stream.read() == SAMPLE[0].read_bytes()[1000:1050]
