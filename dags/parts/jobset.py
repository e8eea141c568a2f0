"""A training stage as a JobSet on Kubernetes: created, or found by its name, then followed until it ends or is removed.

The chart provides the template, which lacks name and arguments. JobSet itself restarts the nodes after exit code 85, so
a JobSet that has ended needs no restart.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

GROUP, VERSION, PLURAL = "jobset.x-k8s.io", "v1alpha2", "jobsets"
NAME_OF, NODE = "jobset.sigs.k8s.io/jobset-name", "batch.kubernetes.io/job-completion-index"
POLL_SECONDS = 5.0
MAX_FAILED_POLLS = 60  # in a row: five minutes, as long as an update of the API server may take
_SIZE = re.compile(r"^(--nnodes|--nproc-per-node)=.*")  # of torchrun
NOT_FOUND, CONFLICT, REFUSED = 404, 409, (401, 403)


def name(stage: str, arguments: Sequence[str]) -> str:
    """The same for the same stage and arguments, so that a restarted worker finds the JobSet that it created."""
    stable = [argument for argument in arguments if argument != "--force"]
    digest = hashlib.sha256("\0".join(stable).encode()).hexdigest()[:10]
    return f"crawl2chat-{re.sub('[^a-z0-9]+', '-', stage.lower())[:30]}-{digest}"


@dataclass
class JobSet:
    """One launch. `template`: file with a JobSet without name and arguments; `namespace`: where it runs.

    `single`: one process on one node, whatever the template says.
    """

    template: Path
    namespace: str
    stage: str
    arguments: Sequence[str]
    single: bool = False
    poll_seconds: float = POLL_SECONDS
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        from kubernetes import client, config  # takes 1 CPU second: not while a DAG file is parsed
        from urllib3.exceptions import HTTPError

        try:
            config.load_incluster_config()
        except config.ConfigException:
            config.load_kube_config()
        self._sets, self._pods = client.CustomObjectsApi(), client.CoreV1Api()
        self._api_error = client.ApiException
        self._unreachable = (client.ApiException, HTTPError)
        self.name = name(self.stage, self.arguments)

    def wait(self, log: Callable[[str], None]) -> int:
        """Create it, or follow the one that runs, and pass on its log until it ends; 0 if it completed, else 1."""
        current = self._read()
        if current is not None and (outcome(current) is not None or "deletionTimestamp" in current["metadata"]):
            self._remove()  # it ended in an earlier try, or is being removed; checkpoints and artifacts stay
            current = None
        if current is None:
            self._create()
        log(f"JobSet {self.namespace}/{self.name}: {'started' if current is None else 'found running'}")
        follower = threading.Thread(target=self._follow, args=(log,), daemon=True)
        follower.start()
        failed_polls = 0
        while not self._stopped.wait(self.poll_seconds):
            try:
                current = self._read()
            except self._unreachable as error:  # training continues meanwhile
                failed_polls += 1
                if failed_polls == MAX_FAILED_POLLS or getattr(error, "status", None) in REFUSED:
                    raise
                log(f"no answer from Kubernetes: {' '.join(str(error).split())[:200]}")
                continue
            failed_polls = 0
            if current is None:
                self._stopped.set()
                log(f"JobSet {self.name} is gone: somebody removed it")
                return 1
            if (how := outcome(current)) is not None:
                self._stopped.set()
                follower.join(POLL_SECONDS)  # for the last lines of the log
                log(f"JobSet {self.name}: {how}")
                return 0 if how.startswith("Completed") else 1
        return 1

    def stop(self, seconds: float) -> None:
        """Remove it unless it has ended, and wait at most `seconds` for its pods, which save a checkpoint first."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._remove(seconds)

    def request_stop(self) -> None:
        """Remove it unless it has ended, without waiting."""
        self.stop(0.0)

    def _body(self) -> dict[str, Any]:
        body: dict[str, Any] = yaml.safe_load(self.template.read_text())
        body["metadata"].pop("generateName", None)
        body["metadata"]["name"] = self.name
        for job in body["spec"]["replicatedJobs"]:
            spec = job["template"]["spec"]
            if self.single:
                spec |= {"completions": 1, "parallelism": 1}
            for container in spec["template"]["spec"]["containers"]:
                container["args"] = list(self.arguments)
                if self.single:
                    container["command"] = [_SIZE.sub(r"\1=1", part) for part in container["command"]]
        return body

    def _create(self) -> None:
        try:
            self._sets.create_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, self._body())
        except self._api_error as error:
            if error.status != CONFLICT:  # another worker has created it: follow that one
                raise

    def _read(self) -> dict[str, Any] | None:
        try:
            current: dict[str, Any] = self._sets.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, self.name
            )
        except self._api_error as error:
            if error.status != NOT_FOUND:
                raise
            return None
        return current

    def _remove(self, seconds: float = 600.0) -> None:
        try:
            self._sets.delete_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, self.name, propagation_policy="Foreground"
            )
        except self._api_error as error:
            if error.status != NOT_FOUND:
                raise
        until = time.monotonic() + seconds
        while self._read() is not None and time.monotonic() < until:
            time.sleep(min(1.0, self.poll_seconds))

    def _follow(self, log: Callable[[str], None]) -> None:
        """Pass on the log of the first node, pod after pod: each line once, even if a connection breaks."""
        lines_read, complete = Counter[str](), set[str]()  # by pod
        selector = f"{NAME_OF}={self.name},{NODE}=0"
        while not self._stopped.is_set():
            try:
                pods = self._pods.list_namespaced_pod(self.namespace, label_selector=selector).items
                for pod in sorted(pods, key=lambda pod: pod.metadata.creation_timestamp):
                    uid = pod.metadata.uid
                    if uid in complete or pod.status.phase == "Pending":
                        continue
                    stream = self._pods.read_namespaced_pod_log(
                        pod.metadata.name, self.namespace, follow=True, _preload_content=False
                    )
                    for line in itertools.islice(stream, lines_read[uid], None):
                        log(line.decode(errors="replace").rstrip())
                        lines_read[uid] += 1
                    complete.add(uid)
            except self._unreachable as error:  # training does not need its log to be read
                log(f"no log at the moment: {error}")
            self._stopped.wait(self.poll_seconds)


def outcome(jobset: dict[str, Any]) -> str | None:
    """`Completed` or `Failed` with its message; None while the JobSet runs."""
    for condition in jobset.get("status", {}).get("conditions", []):
        if condition["type"] in ("Completed", "Failed") and condition["status"] == "True":
            return f"{condition['type']}: {condition.get('message', '')}".rstrip(": ")
    return None
