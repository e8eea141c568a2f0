"""All stages in containers: WARCs and artifacts in S3, the DAG through Airflow's REST API on PostgreSQL, a Spark
cluster, the pages. Exits with 0 if all of it works, else says what does not.

    # needs a container engine
    docker compose -f docker/compose.yaml -f docker/compose.test.yaml run --rm smoke
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from local.client import DAG, Airflow
from pipeline import artifact
from pipeline.stages import CORPUS, STEPS
from pipeline.storage import Storage

HOME = Path(__file__).resolve().parents[1]
WARCS = "s3://crawl2chat/crawl"
ROOT = "s3://crawl2chat/artifacts"
RUN = "smoke"
SHORT = {
    "pretrain.steps": 20,
    "sft.tasks": {"arithmetic": 400},
    "rl.steps": 2,
    "evaluation.tasks": {"arithmetic": 20},
}
FORM = {"recipe": "recipes/demo.yaml", "root": ROOT, "warcs": [f"{WARCS}/*.warc.gz"], **SHORT}
SECONDS = 3000.0  # for the whole run
HISTORY = "http://history-server:18080/api/v1/applications"
SECRETS = (
    "AIRFLOW_ADMIN_PASSWORD",
    "AIRFLOW__API__SECRET_KEY",
    "AIRFLOW__API_AUTH__JWT_SECRET",
    "AIRFLOW__CORE__FERNET_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "CRAWL2CHAT_WEB_PASSWORD",
)


def upload() -> None:
    """Copy the sample into the bucket."""
    storage, files = Storage(WARCS), sorted((HOME / "tests" / "data" / "sample").glob("*.warc.gz"))
    for file in files:
        storage.write(file.name, file.read_bytes())
    print(f"{len(files)} WARC files in {WARCS}", flush=True)


def follow(airflow: Airflow) -> None:
    """Trigger the DAG and wait until it ends; if it failed, print the log of each failed task."""
    until = time.monotonic() + SECONDS
    while not airflow.ready(DAG, since=0.0):  # the processor is healthy before it has read its first file
        airflow.check_imports()
        if time.monotonic() > until:
            sys.exit(f"Airflow has not parsed the DAG {DAG} after {SECONDS:.0f} s")
        time.sleep(1)
    airflow.trigger(DAG, RUN, FORM)
    seen: dict[str, str] = {}
    while (state := airflow.state(DAG, RUN)) in ("queued", "running"):
        if time.monotonic() > until:
            sys.exit(f"the run is still {state} after {SECONDS:.0f} s")
        for task in airflow.tasks(DAG, RUN):
            if task.state and seen.get(task.name) != task.state:
                seen[task.name] = task.state
                print(f"{time.strftime('%H:%M:%S')} {task.name}: {task.state}", flush=True)
        time.sleep(3)
    if state != "success":
        for task in airflow.tasks(DAG, RUN):
            if task.state == "failed":
                print("\n".join(airflow.log(DAG, RUN, task)[-60:]), flush=True)
        sys.exit(f"the run ended: {state}")


def pages() -> None:
    """Check that the report is served with the password, and refused without it."""
    page, password = f"http://web:8090/runs/{RUN}", os.environ["CRAWL2CHAT_WEB_PASSWORD"]
    if (code := httpx.get(page).status_code) != 401:
        sys.exit(f"{page} answers {code} without a password")
    response = httpx.get(page, auth=("anyone", password))
    if response.status_code != 200 or "crawl2chat" not in response.text:
        sys.exit(f"{page} answers {response.status_code}: {response.text[:300]}")
    print(f"report: {len(response.content):,} bytes", flush=True)


def history() -> None:
    """Check that the history server lists every Spark stage."""
    names = {application["name"] for application in httpx.get(HISTORY, timeout=30).json()}
    if missing := {f"crawl2chat {step.name}" for step in CORPUS} - names:
        sys.exit(f"the history server lacks {sorted(missing)}; it lists {sorted(names)}")
    print(f"history server: {len(names)} applications", flush=True)


def artifacts() -> None:
    """Check that each artifact in S3 is whole: every file has the hash in its manifest."""
    storage = Storage(ROOT)
    for stage in STEPS:
        artifact.of_run(storage, RUN, stage).verify()
    print(f"artifacts of {len(STEPS)} stages in {ROOT} are whole", flush=True)


def outputs(airflow: Airflow) -> Iterator[tuple[str, bytes]]:
    """(where, content) of all that the run left for others to read: artifacts, logs, what Airflow and Spark show."""
    bucket = Storage(ROOT.rpartition("/")[0])
    for name in bucket.names(ROOT.rpartition("/")[2]):
        yield bucket.path(name), bucket.read(name)
    for file in Path("/data").rglob("*"):
        if file.is_file():
            yield str(file), file.read_bytes()
    for path in (f"dags/{DAG}/dagRuns/{RUN}", f"dags/{DAG}/dagRuns/{RUN}/taskInstances", "connections", "variables"):
        yield f"Airflow's {path}", airflow.call("GET", path).content
    for application in httpx.get(HISTORY, timeout=30).json():  # not the files of its event log, which are compressed
        environment = httpx.get(f"{HISTORY}/{application['id']}/environment", timeout=30)
        yield f"Spark's {application['name']}", environment.content


def secrets(airflow: Airflow) -> None:
    """Check that no output of the run contains a password or a key, and that S3 refuses a request without a key."""
    hidden = {name: os.environ[name] for name in SECRETS}
    hidden["POSTGRES_PASSWORD"] = urlsplit(os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]).password or ""
    count = 0
    for where, content in outputs(airflow):
        count += 1
        for name, value in hidden.items():
            if value.encode() in content:
                sys.exit(f"{name} is in {where}")
    if (code := httpx.get(f"{os.environ['AWS_ENDPOINT_URL']}/crawl2chat").status_code) != 403:
        sys.exit(f"S3 answers {code} to a request without a key")
    print(f"{len(hidden)} secrets, in none of {count} files and responses", flush=True)


def main() -> None:
    upload()
    airflow = Airflow("http://airflow-api-server:8080", {"username": "admin", "password": os.environ[SECRETS[0]]})
    follow(airflow)
    history()
    pages()
    artifacts()
    secrets(airflow)
    print("smoke: everything works", flush=True)


if __name__ == "__main__":
    main()
