"""A training stage on Kubernetes: Kubernetes' own client, against a server that imitates its API."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from dags.parts import jobset, operators
from dags.parts.jobset import JobSet
from dags.parts.operators import TrainingStage
from pipeline.stages import STEPS
from tests.local.runs import LONGEST, until

SETS = "/apis/jobset.x-k8s.io/v1alpha2/namespaces/train/jobsets"
PODS = "/api/v1/namespaces/train/pods"
TEMPLATE = {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {"generateName": "crawl2chat-"},
    "spec": {
        "replicatedJobs": [
            {
                "name": "node",
                "template": {
                    "spec": {
                        "completions": 4,
                        "parallelism": 4,
                        "template": {
                            "spec": {
                                "containers": [
                                    {"name": "torchrun", "command": ["run", "--nnodes=4", "--nproc-per-node=8", "--"]}
                                ]
                            }
                        },
                    }
                },
            }
        ]
    },
}
ARGUMENTS = ["training/pretrain.py", "--recipe", "r.yaml", "--root", "/data", "--run", "one"]


class Cluster(ThreadingHTTPServer):
    """Holds JobSets; each ends with `outcome` after `polls` reads and once its log was read. `calls`: changes made.

    `failing`: reads that get the error `status`; `lingers`: reads of a JobSet that is being removed, before it is gone;
    `breaks`: reads of the log that end too early.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Api)
        self.sets: dict[str, dict] = {}
        self.polls, self.outcome, self.breaks = 2, "Completed", 0
        self.failing, self.status, self.lingers = 0, 500, 0
        self.calls: list[str] = []
        self.log_read = False
        self.lock = threading.Lock()

    def leave(self, name: str) -> None:
        """Remove a JobSet, once it has lingered."""
        if self.sets[name].setdefault("lingers", self.lingers) == 0:
            del self.sets[name]
        else:
            self.sets[name]["lingers"] -= 1


class Api(BaseHTTPRequestHandler):
    server: Cluster

    def log_message(self, *_) -> None:
        pass

    def answer(self, status: int, body) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        assert urlsplit(self.path).path == SETS
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["metadata"]["name"]
        with self.server.lock:
            self.server.calls.append("create")
            if name in self.server.sets:
                self.answer(409, {"reason": "AlreadyExists"})
                return
            self.server.sets[name] = body | {"status": {}, "polls": 0}
        self.answer(201, body)

    def do_DELETE(self) -> None:
        with self.server.lock:
            self.server.calls.append("delete")
            name = self.path.split("?")[0].rsplit("/", 1)[1]
            jobset = self.server.sets.get(name)
            if jobset is not None:
                jobset["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"
                self.server.leave(name)
        self.answer(200 if jobset else 404, {})

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path.endswith("/log") and self.server.breaks:
            self.server.breaks -= 1
            self.send_response(200)
            self.send_header("Content-Length", "1000")  # and then the connection ends
            self.end_headers()
            self.wfile.write(b"step 1/2: loss 7.1\n")
        elif url.path.endswith("/log"):
            self.answer(200, "step 1/2: loss 7.1\nstep 2/2: loss 6.9\n")
            self.server.log_read = True
        elif url.path == PODS:
            assert parse_qs(url.query)["labelSelector"][0].endswith(f"{jobset.NODE}=0")
            metadata = {"name": "pod", "uid": "u", "creationTimestamp": "2026-11-24T12:00:00Z"}
            pod = {"metadata": metadata, "status": {"phase": "Running"}}
            self.answer(200, {"apiVersion": "v1", "kind": "PodList", "items": [pod] if self.server.sets else []})
        else:
            name = url.path.rsplit("/", 1)[1]
            with self.server.lock:
                current = self.server.sets.get(name)
                if current is not None and self.server.failing:
                    self.server.failing -= 1
                    self.answer(self.server.status, {"reason": "InternalError"})
                    return
                if current is not None and "deletionTimestamp" in current["metadata"]:
                    self.server.leave(name)
                elif current is not None:
                    current["polls"] += 1
                    if current["polls"] > self.server.polls and self.server.log_read:
                        ended = {"type": self.server.outcome, "status": "True", "message": "all jobs"}
                        current["status"] = {"conditions": [ended]}
            self.answer(404 if current is None else 200, current or {"reason": "NotFound"})


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Iterator[Cluster]:
    server = Cluster()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
        "users": [{"name": "test", "user": {"token": "x"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    (tmp_path / "jobset.yaml").write_text(yaml.safe_dump(TEMPLATE))
    # The client reads the environment when it is imported, which may be before this test.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    yield server
    server.shutdown()
    server.server_close()


def launch(tmp_path, arguments=ARGUMENTS, **options) -> JobSet:
    return JobSet(tmp_path / "jobset.yaml", "train", "pretrain", arguments, poll_seconds=0.05, **options)


def test_a_stage_is_started_and_followed_and_not_removed_when_it_has_ended(cluster, tmp_path):
    lines: list[str] = []
    started = launch(tmp_path)
    assert started.wait(lines.append) == 0
    assert "step 2/2: loss 6.9" in lines and lines[-1] == f"JobSet {started.name}: Completed: all jobs"
    created = cluster.sets[started.name]
    (job,) = created["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ARGUMENTS and job["template"]["spec"]["completions"] == 4
    assert "generateName" not in created["metadata"]
    started.stop(1)
    assert started.name in cluster.sets  # a JobSet that has ended is not removed


def test_each_line_comes_once_though_the_connection_breaks(cluster, tmp_path):
    cluster.breaks = 2
    lines: list[str] = []
    launch(tmp_path).wait(lines.append)
    assert [line for line in lines if line.startswith("step")] == ["step 1/2: loss 7.1", "step 2/2: loss 6.9"]
    assert sum("no log at the moment" in line for line in lines) == 2


def test_one_process_is_one_node(cluster, tmp_path):
    started = launch(tmp_path, single=True)
    started.wait(print)
    (job,) = cluster.sets[started.name]["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (spec["completions"], spec["parallelism"]) == (1, 1)
    assert spec["template"]["spec"]["containers"][0]["command"] == ["run", "--nnodes=1", "--nproc-per-node=1", "--"]


def test_a_restarted_worker_finds_the_jobset_that_it_created(cluster, tmp_path):
    cluster.polls = 10**9
    first, lines = launch(tmp_path), list[str]()
    thread = threading.Thread(target=first.wait, args=(print,), daemon=True)
    thread.start()
    until(lambda: cluster.sets, 0.01)
    first._stopped.set()  # as if its worker had died
    thread.join(LONGEST)
    assert not thread.is_alive()
    cluster.polls = cluster.sets[first.name]["polls"] + 3
    again = launch(tmp_path, [*ARGUMENTS, "--force"])  # --force is not part of the name
    assert again.name == first.name
    assert again.wait(lines.append) == 0
    assert cluster.calls == ["create"] and "found running" in lines[0]


def test_a_failed_jobset_is_removed_before_a_retry(cluster, tmp_path):
    cluster.polls, cluster.outcome = 0, "Failed"
    assert launch(tmp_path).wait(print) == 1
    cluster.outcome, cluster.polls = "Completed", 3
    assert launch(tmp_path).wait(print) == 0
    assert cluster.calls == ["create", "delete", "create"]


def test_a_jobset_that_is_being_removed_is_not_followed(cluster, tmp_path):
    cluster.polls = 10**9
    first = launch(tmp_path)
    first._create()
    cluster.lingers = 3
    first._remove(0)
    assert first._read() is not None
    cluster.polls, lines = 3, list[str]()
    assert launch(tmp_path).wait(lines.append) == 0
    assert cluster.calls == ["create", "delete", "delete", "create"] and lines[0].endswith(": started")


@pytest.mark.parametrize("status", [500, 429])
def test_a_training_outlasts_a_kubernetes_that_does_not_answer(cluster, tmp_path, status):
    cluster.failing, cluster.status = jobset.MAX_FAILED_POLLS - 1, status
    lines: list[str] = []
    assert launch(tmp_path).wait(lines.append) == 0
    assert sum(f"no answer from Kubernetes: ({status})" in line for line in lines) == jobset.MAX_FAILED_POLLS - 1


@pytest.mark.parametrize(("status", "failing"), [(500, jobset.MAX_FAILED_POLLS), (403, 1)])
def test_but_not_one_that_is_gone_or_refuses(cluster, tmp_path, status, failing):
    from kubernetes.client import ApiException

    cluster.failing, cluster.status = failing, status
    started = launch(tmp_path)
    with pytest.raises(ApiException, match=str(status)):
        started.wait(print)
    started.stop(1)


def test_a_killed_task_removes_it(cluster, tmp_path):
    cluster.polls = 10**9
    started, codes = launch(tmp_path), list[int]()
    thread = threading.Thread(target=lambda: codes.append(started.wait(print)), daemon=True)
    thread.start()
    until(lambda: cluster.sets, 0.01)
    started.request_stop()
    thread.join(LONGEST)
    assert codes == [1] and not cluster.sets


def test_the_connection_chooses_the_back_end(cluster, tmp_path, monkeypatch):
    extra = {"backend": "jobset", "template": str(tmp_path / "jobset.yaml"), "namespace": "train", "options": ["--x"]}
    monkeypatch.setenv("AIRFLOW_CONN_DEEPSPEED_DEFAULT", json.dumps({"conn_type": "deepspeed", "extra": extra}))
    task = TrainingStage(task_id="t", step=STEPS["pretrain"])
    task.arguments = [f"{operators.HOME}/training/pretrain.py", *ARGUMENTS[1:], ""]
    started = task.launch()
    assert isinstance(started, JobSet) and started.arguments == [*ARGUMENTS, "--x"] and not started.single
    alone = TrainingStage(task_id="e", step=STEPS["evaluation-sft"])
    alone.arguments = [f"{operators.HOME}/evaluation/evaluate_model.py", *ARGUMENTS[1:]]
    assert alone.launch().single
    monkeypatch.setenv("AIRFLOW_CONN_DEEPSPEED_DEFAULT", json.dumps({"extra": {"backend": "slurm"}}))
    with pytest.raises(operators.AirflowFailException, match="slurm"):
        task.launch()


def test_names_are_those_of_kubernetes_and_differ_by_run():
    names = {jobset.name("evaluation-sft", [*ARGUMENTS[:-1], run]) for run in ("one", "two")}
    assert len(names) == 2
    assert all(len(name) <= 52 and name.replace("-", "").isalnum() and name.islower() for name in names)
