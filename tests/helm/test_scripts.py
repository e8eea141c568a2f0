"""The two programs that the chart carries, run: torchrun with its ranks' exit code, and the checks of `helm test`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.local.runs import LONGEST, until
from tests.server import serving

REPOSITORY = Path(__file__).parents[2]
FILES = REPOSITORY / "helm" / "crawl2chat" / "files"
RANK = """
import os, pathlib, signal, sys, time
how, folder = sys.argv[1], pathlib.Path(sys.argv[2])
rank = os.environ["RANK"]
if how == "wait":
    def save(*_):
        (folder / f"saved-{rank}").touch()
        sys.exit(85)
    signal.signal(signal.SIGTERM, save)
    (folder / f"ready-{rank}").touch()
    time.sleep(3600)
if how == "kill" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(how) if how.isdigit() else 0)
"""


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[[str], subprocess.Popen[bytes]]:
    """Start two ranks that end as `how` says."""
    pytest.importorskip("torch")
    (tmp_path / "rank.py").write_text(RANK)

    def start(how: str) -> subprocess.Popen[bytes]:
        options = ["--nnodes=1", "--nproc-per-node=2", "--node-rank=0", "--master-addr=127.0.0.1", "--master-port=0"]
        script = ["--shutdown-timeout=20", "--", str(tmp_path / "rank.py"), how, str(tmp_path)]
        return subprocess.Popen(
            [sys.executable, str(FILES / "torchrun.py"), *options, *script],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    return start


@pytest.mark.parametrize(("how", "code"), [("0", 0), ("85", 85), ("2", 2), ("kill", 128 + signal.SIGKILL)])
def test_torchrun_ends_as_its_ranks_do(torchrun: Callable[[str], subprocess.Popen[bytes]], how: str, code: int) -> None:
    assert torchrun(how).wait(LONGEST) == code


def test_asked_to_stop_it_lets_ranks_save_and_asks_to_be_resumed(
    torchrun: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    process = torchrun("wait")
    until(lambda: len(list(tmp_path.glob("ready-*"))) == 2, 0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LONGEST) == 85
    assert len(list(tmp_path.glob("saved-*"))) == 2


class Api(BaseHTTPRequestHandler):
    """An API server that allows what a Role of the chart does, and pages that answer."""

    rules: list[dict[str, Any]]
    asked: list[dict[str, Any]]
    claim: dict[str, Any]
    fields: tuple[str, ...]  # that its JobSet knows of a failure policy's rule

    def do_GET(self) -> None:
        if self.path == "/api/v1/namespaces/place/persistentvolumeclaims/crawl2chat-data":
            self.answer(200, self.claim)
            return
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def answer(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def do_POST(self) -> None:
        if self.path.startswith("/apis/jobset.x-k8s.io/"):
            assert self.path.endswith("/v1alpha2/namespaces/place/jobsets?dryRun=All&fieldValidation=Strict")
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            unknown = {key for rule in sent["spec"]["failurePolicy"]["rules"] for key in rule} - {*self.fields}
            message = "".join(f'unknown field "spec.failurePolicy.rules[0].{key}"' for key in unknown)
            self.answer(400 if unknown else 201, {"message": message} if unknown else sent)
            return
        assert self.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        assert self.headers["Authorization"] == "Bearer the-token"
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        what = review["spec"]["resourceAttributes"]
        self.asked.append(what)
        name = "/".join(part for part in (what["resource"], what.get("subresource")) if part)
        allowed = what["namespace"] == "place" and any(
            what["group"] in rule["apiGroups"] and name in rule["resources"] and what["verb"] in rule["verbs"]
            for rule in self.rules
        )
        self.answer(201, {**review, "status": {"allowed": allowed}})


@pytest.fixture
def api() -> Iterator[tuple[str, type[Api]]]:
    claim = {
        "spec": {"storageClassName": "shared"},
        "status": {"phase": "Bound", "accessModes": ["ReadWriteMany"]},
    }
    fields = ("name", "action", "onJobFailureReasons", "onJobFailureMessagePatterns")
    handler = type("Handler", (Api,), {"rules": [], "asked": [], "claim": claim, "fields": fields})
    with serving(handler) as address:
        yield f"http://{address}", handler


OPTIONS = ("--rights", "--claim", "crawl2chat-data", "ReadWriteMany")


def check(url: str, root: Path | str, account: Path, page: str = "/healthz") -> subprocess.CompletedProcess[str]:
    account.mkdir(exist_ok=True)
    (account / "namespace").write_text("place")
    (account / "token").write_text("the-token")
    template = account / "jobset.yaml"
    rules = [{"name": "resume", "action": "RestartJobSet", "onJobFailureMessagePatterns": ["85"]}]
    template.write_text(yaml.safe_dump({"metadata": {}, "spec": {"failurePolicy": {"rules": rules}}}))
    rest = ["--root", str(root), f"{url}{page}"]
    return subprocess.run(
        [sys.executable, str(FILES / "check.py"), *OPTIONS, "--jobset", str(template), "0.10.0", *rest],
        env={**os.environ, "API": url, "ACCOUNT": str(account), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


def role() -> list[dict[str, Any]]:
    """The rules of the chart's Role, read from the template, which has no placeholders there."""
    text = (FILES.parent / "templates" / "accounts.yaml").read_text()
    part = text.split("\nrules:\n", 1)[1].split("\n---", 1)[0]
    return yaml.safe_load(part)


def test_the_role_of_the_chart_passes(api: tuple[str, type[Api]], tmp_path: Path) -> None:
    url, handler = api
    handler.rules = role()
    result = check(url, tmp_path / "root", tmp_path / "account")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(": ok\n") == len(result.stdout.splitlines()) == len(handler.asked) + 4
    assert "the-token" not in result.stdout + result.stderr


def test_too_few_rights_fail_and_so_do_too_many(api: tuple[str, type[Api]], tmp_path: Path) -> None:
    url, handler = api
    handler.rules = [rule for rule in role() if rule["apiGroups"] != ["jobset.x-k8s.io"]]
    result = check(url, tmp_path / "root", tmp_path / "account")
    assert result.returncode == 1 and "may create jobsets: FAILED" in result.stdout
    handler.rules = [*role(), {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]
    result = check(url, tmp_path / "root", tmp_path / "account")
    assert result.returncode == 1 and "may not get secrets: FAILED" in result.stdout


def test_a_root_or_a_page_that_does_not_answer_fails(api: tuple[str, type[Api]], tmp_path: Path) -> None:
    url, handler = api
    handler.rules = role()
    result = check(url, "/proc/nothing", tmp_path / "account", "/gone")
    assert result.returncode == 1
    assert "can write /proc/nothing: FAILED" in result.stdout
    assert "/gone answers: FAILED: HTTP Error 404" in result.stdout


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"phase": "Pending"}, "it is Pending: storage class shared must make ReadWriteMany volumes"),
        ({"phase": "Bound", "accessModes": ["ReadWriteOnce"]}, "it is ReadWriteOnce: take a storage class other than"),
    ],
)
def test_a_volume_that_pods_cannot_share_is_named(
    api: tuple[str, type[Api]], tmp_path: Path, status: dict[str, Any], message: str
) -> None:
    url, handler = api
    handler.rules = role()
    handler.claim = {**handler.claim, "status": status}
    result = check(url, tmp_path / "root", tmp_path / "account")
    assert result.returncode == 1 and f"claim crawl2chat-data is bound: FAILED: {message}" in result.stdout


def test_a_jobset_that_is_too_old_is_named(api: tuple[str, type[Api]], tmp_path: Path) -> None:
    url, handler = api
    handler.rules = role()
    handler.fields = ("name", "action", "onJobFailureReasons")
    result = check(url, tmp_path / "root", tmp_path / "account")
    assert result.returncode == 1
    assert "JobSet takes the template: FAILED: JobSet 0.10.0 or newer is needed: 400" in result.stdout
    assert "onJobFailureMessagePatterns" in result.stdout
