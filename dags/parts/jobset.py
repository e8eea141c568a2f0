"""A training stage as a JobSet on Kubernetes: started or found again by its name, followed, and really stopped.

The chart writes the template (all but name and arguments); JobSet itself starts the nodes again after exit code 85, so
what ends here has ended for good.
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
LOOK_SECONDS = 5.0
MISSES = 60  # looks in a row that Kubernetes may leave without an answer: five minutes, as where its server is updated
_SIZE = re.compile(r"^(--nnodes|--nproc-per-node)=.*")  # of torchrun
NOT_FOUND, CONFLICT, REFUSED = 404, 409, (401, 403)


def name(stage: str, arguments: Sequence[str]) -> str:
    """The same for the same stage and arguments, so that a worker that comes back finds what it started."""
    place = [argument for argument in arguments if argument != "--force"]
    digest = hashlib.sha256("\0".join(place).encode()).hexdigest()[:10]
    return f"crawl2chat-{re.sub('[^a-z0-9]+', '-', stage.lower())[:30]}-{digest}"


@dataclass
class JobSet:
    """One launch. `template`: file of a JobSet without name and arguments; `namespace`: where it runs.

    `single`: one process on one node, whatever the template says.
    """

    template: Path
    namespace: str
    stage: str
    arguments: Sequence[str]
    single: bool = False
    look_seconds: float = LOOK_SECONDS
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        from kubernetes import client, config  # 1 CPU second: not while a DAG file is parsed
        from urllib3.exceptions import HTTPError

        try:
            config.load_incluster_config()
        except config.ConfigException:
            config.load_kube_config()
        self._sets, self._pods = client.CustomObjectsApi(), client.CoreV1Api()
        self._failed = client.ApiException
        self._lost = (client.ApiException, HTTPError)
        self.name = name(self.stage, self.arguments)

    def wait(self, log: Callable[[str], None]) -> int:
        """Start it, or go on with the one that runs; its logs line by line; 0 where it completed, else 1."""
        found = self._read()
        if found is not None and (ended(found) is not None or "deletionTimestamp" in found["metadata"]):
            self._remove()  # of an earlier try, or that is being removed; what it made is found again
            found = None
        if found is None:
            self._create()
        log(f"JobSet {self.namespace}/{self.name}: {'started' if found is None else 'found running'}")
        follower = threading.Thread(target=self._follow, args=(log,), daemon=True)
        follower.start()
        misses = 0
        while not self._stopped.wait(self.look_seconds):
            try:
                found = self._read()
            except self._lost as error:  # the training goes on meanwhile
                misses += 1
                if misses == MISSES or getattr(error, "status", None) in REFUSED:
                    raise
                log(f"no answer from Kubernetes: {' '.join(str(error).split())[:200]}")
                continue
            misses = 0
            if found is None:
                self._stopped.set()
                log(f"JobSet {self.name} is gone: somebody removed it")
                return 1
            if (outcome := ended(found)) is not None:
                self._stopped.set()
                follower.join(self.look_seconds)
                log(f"JobSet {self.name}: {outcome}")
                return 0 if outcome.startswith("Completed") else 1
        return 1

    def stop(self, seconds: float) -> None:
        """Remove it; its pods have their grace period to save, `seconds` are waited for that. Not what has ended."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._remove(seconds)

    def ask_to_stop(self) -> None:
        """As `stop`, without waiting."""
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
        except self._failed as error:
            if error.status != CONFLICT:  # another worker was first: follow that one
                raise

    def _read(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._sets.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, self.name
            )
        except self._failed as error:
            if error.status != NOT_FOUND:
                raise
            return None
        return found

    def _remove(self, seconds: float = 600.0) -> None:
        try:
            self._sets.delete_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, self.name, propagation_policy="Foreground"
            )
        except self._failed as error:
            if error.status != NOT_FOUND:
                raise
        until = time.monotonic() + seconds
        while self._read() is not None and time.monotonic() < until:
            time.sleep(min(1.0, self.look_seconds))

    def _follow(self, log: Callable[[str], None]) -> None:
        """Pass the lines of the first node on, pod after pod; each once, also where a connection breaks."""
        passed, whole = Counter[str](), set[str]()
        selector = f"{NAME_OF}={self.name},{NODE}=0"
        while not self._stopped.is_set():
            try:
                pods = self._pods.list_namespaced_pod(self.namespace, label_selector=selector).items
                for pod in sorted(pods, key=lambda pod: pod.metadata.creation_timestamp):
                    uid = pod.metadata.uid
                    if uid in whole or pod.status.phase == "Pending":
                        continue
                    answer = self._pods.read_namespaced_pod_log(
                        pod.metadata.name, self.namespace, follow=True, _preload_content=False
                    )
                    for line in itertools.islice(answer, passed[uid], None):
                        log(line.decode(errors="replace").rstrip())
                        passed[uid] += 1
                    whole.add(uid)
            except self._lost as error:  # a log that cannot be had ends no training
                log(f"no log at the moment: {error}")
            self._stopped.wait(self.look_seconds)


def ended(found: dict[str, Any]) -> str | None:
    """`Completed` or `Failed` with what is said of it; None while a JobSet goes on."""
    for condition in found.get("status", {}).get("conditions", []):
        if condition["type"] in ("Completed", "Failed") and condition["status"] == "True":
            return f"{condition['type']}: {condition.get('message', '')}".rstrip(": ")
    return None
