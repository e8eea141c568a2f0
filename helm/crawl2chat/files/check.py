"""What `helm test` checks, as the service account that starts Spark and JobSets: its rights, the root, the pages.

    python check.py ROOT [URL …]

The API server itself reviews the rights (SelfSubjectAccessReview, as `kubectl auth can-i` does).
"""

import json
import os
import ssl
import sys
import urllib.request
from pathlib import Path

from pipeline.storage import Storage

ACCOUNT = Path(os.environ.get("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
API = os.environ.get("API", "https://kubernetes.default.svc")
MAY = [("", "pods"), ("", "services"), ("", "configmaps"), ("jobset.x-k8s.io", "jobsets")]
MAY_NOT = [("get", "", "secrets"), ("create", "rbac.authorization.k8s.io", "roles"), ("create", "", "pods/exec")]


def allowed(verb: str, group: str, resource: str) -> bool:
    """Whether this pod's service account may do this in its namespace."""
    name, _, part = resource.partition("/")
    attributes = {"namespace": (ACCOUNT / "namespace").read_text(), "verb": verb, "group": group, "resource": name}
    if part:
        attributes["subresource"] = part
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    request = urllib.request.Request(
        f"{API}/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        json.dumps(review).encode(),
        {"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}", "Content-Type": "application/json"},
    )
    trust = ssl.create_default_context(cafile=ACCOUNT / "ca.crt") if API.startswith("https") else None
    with urllib.request.urlopen(request, timeout=10, context=trust) as answer:
        return bool(json.load(answer)["status"]["allowed"])


def main(root: str, *urls: str) -> int:
    """Run the checks and print their outcome, one per line; returns how many failed."""
    checks = [
        *((f"may {verb} {what}", lambda v=verb, g=group, w=what: allowed(v, g, w))
          for group, what in MAY for verb in ("get", "list", "watch", "create", "delete")),
        ("may get pods/log", lambda: allowed("get", "", "pods/log")),
        *((f"may not {verb} {what}", lambda v=verb, g=group, w=what: not allowed(v, g, w))
          for verb, group, what in MAY_NOT),
        (f"can write {root}", lambda: Storage(root).check_writable() is None),
        *((f"{url} answers", lambda u=url: urllib.request.urlopen(u, timeout=10).status == 200) for url in urls),
    ]  # fmt: skip
    failed = 0
    for name, check in checks:
        try:
            outcome = "ok" if check() else "FAILED"
        except Exception as error:
            outcome = f"FAILED: {error}"
        failed += outcome != "ok"
        print(f"{name}: {outcome}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(1, main(*sys.argv[1:])))
