"""The chart's JobSet: it fits JobSet's models, restarts as our exit codes ask for, and the DAGs can launch it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dags.parts.jobset import JobSet
from dags.parts.jobset import name as jobset_name
from pipeline import errors
from tests.helm.chart import VALUES, jobset, lost, named, needs_helm, rendered

pytestmark = needs_helm


@pytest.mark.parametrize("name", VALUES)
def test_jobset_fits_the_models(name: str) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models")
    written = jobset(rendered(name))
    read = json.loads(json.dumps(models.JobsetV1alpha2JobSet.from_dict(written).to_dict(), default=str))
    assert lost(written, read) == [], "keys that the models do not have"


def test_exit_codes_are_those_of_our_errors() -> None:
    """85 resumes, errors that a retry cannot mend fail it; a storage or a node may come back.

    `NotPublished` is no end of a stage: only who looks whether it is published is told.
    """
    spec = jobset(rendered("default"))["spec"]
    [job] = spec["replicatedJobs"]
    rules = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [errors.EXIT_RESUME]
    final = {
        error.exit_code
        for error in errors.CrawlToChatError.__subclasses__()
        if error.__module__ == errors.__name__
        and error not in (errors.StorageError, errors.NodeError, errors.Interrupted, errors.NotPublished)
    }
    assert set(rules[1]["onExitCodes"]["values"]) == final
    # Kubernetes' words for a failed Job (pkg/controller/job/pod_failure_policy.go).
    resume, end = spec["failurePolicy"]["rules"]
    exited = (
        "Container torchrun for pod place/x-node-0-1-abcde failed with exit code {} matching FailJob rule at index 0"
    )
    gone = "Pod place/x has condition DisruptionTarget matching FailJob rule at index 2"
    patterns = "|".join(resume["onJobFailureMessagePatterns"])
    assert re.search(patterns, exited.format(85)) and re.search(patterns, gone)
    assert not re.search(patterns, exited.format(2)) and not re.search(patterns, exited.format(850))
    assert (resume["action"], end["action"]) == ("RestartJobSetAndIgnoreMaxRestarts", "FailJobSet")


@pytest.mark.parametrize("single", [False, True])
def test_the_dags_can_launch_the_template(single: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dags/parts/jobset.py` fills in name and arguments; what it sends still fits the models."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    monkeypatch.setattr(JobSet, "__post_init__", lambda self: None)  # it looks for a cluster
    manifests = rendered("gpu")
    (tmp_path / "jobset.yaml").write_text(named(manifests, "ConfigMap", "crawl2chat-jobset")["data"]["jobset.yaml"])
    launch = JobSet(
        tmp_path / "jobset.yaml", "place", "pretrain", ["training/pretrain.py", "--run", "x"], single=single
    )
    launch.name = jobset_name("pretrain", launch.arguments)
    body = launch._body()
    assert lost(body, json.loads(json.dumps(models.JobsetV1alpha2JobSet.from_dict(body).to_dict(), default=str))) == []
    spec = body["spec"]["replicatedJobs"][0]["template"]["spec"]
    [container] = spec["template"]["spec"]["containers"]
    assert container["args"] == ["training/pretrain.py", "--run", "x"] and container["command"][-1] == "--"
    nodes, ranks = (1, 1) if single else (2, 8)
    assert spec["completions"] == nodes and f"--nnodes={nodes}" in container["command"]
    assert f"--nproc-per-node={ranks}" in container["command"]
    # The name of a JobSet's pod, with its indices, may have 63 characters.
    assert len(f"{body['metadata']['name']}-node-0-{nodes - 1}-abcde") <= 63
