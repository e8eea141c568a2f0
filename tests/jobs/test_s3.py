"""WARC files in S3: an S3 server on this machine, real requests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from jobs.archive import sources
from pipeline.errors import InputError
from pipeline.recipe import Input
from tests.jobs.conftest import REPOSITORY

SECRET = "planted-7f3b9c"
SAMPLE = sorted((REPOSITORY / "tests/data/sample").glob("*.warc.gz"))


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of a bucket that holds the sample and a list of its files."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    client = boto3.client("s3")
    for file in SAMPLE:
        client.put_object(Bucket="crawl", Key=f"x/{file.name}", Body=file.read_bytes())
    client.put_object(Bucket="crawl", Key="x/warc.paths", Body="\n".join(file.name for file in SAMPLE).encode())
    return f"{s3}/x"


def find(*warcs: str) -> list[sources.Source]:
    return sources.find(Input(warcs=list(warcs), crawl=None, max_warcs=None))


def test_patterns_lists_and_keys_name_the_same_files(bucket: str) -> None:
    found = find(f"{bucket}/*.warc.gz")
    assert [source.name for source in found] == [file.name for file in SAMPLE]
    assert find(f"{bucket}/warc.paths") == find(*(f"{bucket}/{file.name}" for file in SAMPLE)) == found
    assert found[0].content.startswith(f"{SAMPLE[0].name}:{SAMPLE[0].stat().st_size}-")


def test_common_crawls_own_list_counts_from_the_bucket(bucket: str) -> None:
    client, key = boto3.client("s3"), "crawl-data/CC-MAIN-2025-05/segments/7/warc/1.warc.gz"
    client.put_object(Bucket="crawl", Key=key, Body=b"w")
    client.put_object(Bucket="crawl", Key="crawl-data/CC-MAIN-2025-05/warc.paths", Body=key.encode())
    found = find("s3://crawl/crawl-data/CC-MAIN-2025-05/warc.paths")
    assert [source.location for source in found] == [f"s3://crawl/{key}"]


def test_what_is_not_there_is_named(bucket: str) -> None:
    for name in ("x/nothing-*.gz", "x/nothing.warc.gz", "x/nothing.paths"):
        with pytest.raises(InputError, match="nothing"):
            find(f"s3://crawl/{name}")
    with pytest.raises(InputError, match="nobody"):
        find("s3://nobody/x.warc.gz")


def test_a_download_is_the_file_and_goes_on_where_it_ended(bucket: str, tmp_path: Path) -> None:
    location, whole = f"{bucket}/{SAMPLE[0].name}", SAMPLE[0].read_bytes()
    sources.local_path(location, tmp_path).write_bytes(whole[:100_000])
    assert list(sources.fetch(location, tmp_path))[-1] == len(whole)
    assert sources.local_path(location, tmp_path).read_bytes() == whole


def test_a_record_is_read_at_its_offset(bucket: str) -> None:
    with sources.open_at(f"{bucket}/{SAMPLE[0].name}", 1000, 50) as stream:
        assert stream.read() == SAMPLE[0].read_bytes()[1000:1050]


ROAD = """
import sys
from pathlib import Path
from jobs import decontaminate, deduplicate, extract, filter, redact, shard, train_tokenizer
from jobs.stage import session
from pipeline.command import Job
from pipeline.storage import Storage
from tests.jobs.conftest import job
from web import report
warc, *roots = sys.argv[1:]
spark = session.spark("road")  # one for all stages: what they publish hangs on no session
stop, spark.stop, session.spark = spark.stop, lambda: None, lambda name: spark
for root in roots:
    work = job(Path("unused"), {"input.warcs": [warc], "shard.validation": 0.2})
    work = Job(work.recipe, Storage(root), work.run, work.input, work.force)
    for stage in (extract, filter, deduplicate, redact, decontaminate, train_tokenizer, shard):
        made = stage.run(work)
        print(stage.STAGE.name, *(file.sha256 for file in made.content.files))
    report.publish(work.storage, work.run)
stop()
"""


@pytest.mark.slow
def test_a_corpus_in_s3_is_the_one_on_disk_and_holds_no_secret(bucket: str, tmp_path: Path) -> None:
    """The whole road with its root in S3: the same bytes; and the key that opened it stands nowhere."""
    command = [sys.executable, "-c", ROAD, f"{bucket}/{SAMPLE[0].name}", f"{bucket}/root", str(tmp_path)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = [line for line in done.stdout.splitlines() if re.fullmatch(r"[a-z]+( [0-9a-f]{64})+", line)]
    assert len(made) == 14 and made[:7] == made[7:]
    client = boto3.client("s3")
    keys = [one["Key"] for one in client.list_objects_v2(Bucket="crawl", Prefix="x/root")["Contents"]]
    assert len(keys) > 20
    for key in keys:
        assert SECRET.encode() not in client.get_object(Bucket="crawl", Key=key)["Body"].read(), key
    assert SECRET not in done.stdout + done.stderr
