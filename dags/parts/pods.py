"""What the pod of a task asks for under KubernetesExecutor; other executors ignore it.

`CRAWL2CHAT_PODS` maps a kind of task to Kubernetes' `resources`; the chart sets it. A task without a kind, as Spark's
driver is, gets the executor's own size, and so does every task where the variable is not set.
"""

from __future__ import annotations

import json
import os
from typing import Any


def config(kind: str) -> dict[str, Any]:
    """`executor_config` of a task that is `small` (it waits, or writes little), or that launches `training`."""
    resources = json.loads(os.environ.get("CRAWL2CHAT_PODS", "{}")).get(kind)
    if resources is None:
        return {}
    from kubernetes.client import models  # takes 1 CPU second: not where tasks have no pods

    # The executor merges this into its template, whose container has that name.
    container = models.V1Container(name="base", resources=models.V1ResourceRequirements(**resources))
    return {"pod_override": models.V1Pod(spec=models.V1PodSpec(containers=[container]))}


SMALL, TRAINING = config("small"), config("training")
