"""What `helm test` checks, as the service account that starts Spark and JobSets.

    python check.py --rights --claim crawl2chat-data ReadWriteMany --jobset jobset.yaml 0.10.0
    python check.py --root ROOT [URL …]

The first needs no volume, so that it can say why one is missing; the API server itself reviews the rights
(SelfSubjectAccessReview, as `kubectl auth can-i` does) and the JobSet (a dry run). The second mounts the volume.
"""

import argparse
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ACCOUNT = Path(os.environ.get("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
API = os.environ.get("API", "https://kubernetes.default.svc")
MAY = [("", "pods"), ("", "services"), ("", "configmaps"), ("jobset.x-k8s.io", "jobsets")]
MAY_NOT = [("get", "", "secrets"), ("create", "rbac.authorization.k8s.io", "roles"), ("create", "", "pods/exec")]


def call(path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the API server answers; with a body, to a POST. Raises `RuntimeError` with its message if it refuses."""
    request = urllib.request.Request(
        f"{API}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}", "Content-Type": "application/json"},
    )
    trust = ssl.create_default_context(cafile=ACCOUNT / "ca.crt") if API.startswith("https") else None
    try:
        with urllib.request.urlopen(request, timeout=10, context=trust) as answer:
            found: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{error.code} {error.read().decode(errors='replace')[:500]}") from error
    return found


def namespace() -> str:
    return (ACCOUNT / "namespace").read_text()


def allowed(verb: str, group: str, resource: str) -> bool:
    """Whether this pod's service account may do this in its namespace."""
    name, _, part = resource.partition("/")
    attributes = {"namespace": namespace(), "verb": verb, "group": group, "resource": name}
    if part:
        attributes["subresource"] = part
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = call("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


def bound(claim: str, mode: str) -> bool:
    """Whether the volume exists, and pods of all nodes can write to it."""
    found = call(f"/api/v1/namespaces/{namespace()}/persistentvolumeclaims/{claim}")
    kind = found["spec"].get("storageClassName", "the default one")
    if (phase := found["status"]["phase"]) != "Bound":
        raise RuntimeError(
            f"it is {phase}: storage class {kind} must make {mode} volumes; kubectl describe pvc {claim}"
        )
    if mode not in (modes := found["status"].get("accessModes", [])):
        raise RuntimeError(f"it is {', '.join(modes)}: take a storage class other than {kind}, or another claim")
    return True


def accepted(template: str, version: str) -> bool:
    """Whether this cluster's JobSet knows every field of ours. An older one would drop what it does not know."""
    import yaml

    body = yaml.safe_load(Path(template).read_text())
    body["metadata"] |= {"name": "crawl2chat-check"}
    path = f"/apis/jobset.x-k8s.io/v1alpha2/namespaces/{namespace()}/jobsets?dryRun=All&fieldValidation=Strict"
    try:
        return bool(call(path, body))
    except RuntimeError as error:
        raise RuntimeError(f"JobSet {version} or newer is needed: {error}") from error


def writable(root: str) -> bool:
    from pipeline.storage import Storage

    return Storage(root).check_writable() is None


def checks(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], bool]]]:
    """The name of each check that the options ask for, and the check."""
    if options.rights:
        for group, what in MAY if options.jobset else MAY[:-1]:
            for verb in ("get", "list", "watch", "create", "delete"):
                yield f"may {verb} {what}", lambda v=verb, g=group, w=what: allowed(v, g, w)
        yield "may get pods/log", lambda: allowed("get", "", "pods/log")
        for verb, group, what in MAY_NOT:
            yield f"may not {verb} {what}", lambda v=verb, g=group, w=what: not allowed(v, g, w)
    if options.claim:
        yield f"claim {options.claim[0]} is bound", lambda: bound(*options.claim)
    if options.jobset:
        yield "JobSet takes the template", lambda: accepted(*options.jobset)
    if options.root:
        yield f"can write {options.root}", lambda: writable(options.root)
    for url in options.urls:
        yield f"{url} answers", lambda u=url: bool(urllib.request.urlopen(u, timeout=10).status == 200)


def main() -> int:
    """Run the checks and print their outcome, one per line; returns how many failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rights", action="store_true", help="of this pod's service account")
    parser.add_argument("--claim", nargs=2, metavar=("NAME", "MODE"), help="a volume claim, and its access mode")
    parser.add_argument("--jobset", nargs=2, metavar=("FILE", "VERSION"), help="a JobSet, and the release it needs")
    parser.add_argument("--root", help="of artifacts")
    parser.add_argument("urls", nargs="*", help="pages that answer")
    failed = 0
    for name, check in checks(parser.parse_args()):
        try:
            outcome = "ok" if check() else "FAILED"
        except Exception as error:
            outcome = f"FAILED: {error}"
        failed += outcome != "ok"
        print(f"{name}: {outcome}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(1, main()))
