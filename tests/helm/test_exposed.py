"""Ingress and HTTPRoute: hosts, TLS, and the Service behind them; JobSet is asked for where a cluster answers."""

from __future__ import annotations

import pytest

from tests.helm.chart import CHART, Manifest, call, named, needs_helm, of, render, rendered

pytestmark = needs_helm
OPEN = {"from": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}]}


def test_nothing_is_exposed_unless_asked_for() -> None:
    assert not of(rendered("default"), "Ingress") and not of(rendered("default"), "HTTPRoute")


@pytest.mark.parametrize(
    ("key", "name", "port"), [("web", "crawl2chat-web", 8090), ("historyServer", "crawl2chat-history-server", 18080)]
)
def test_each_ends_at_its_service(key: str, name: str, port: int) -> None:
    ingress = {"enabled": True, "host": "x.example.org", "tlsSecret": "tls", "annotations": {"a.example.org/b": "c"}}
    gateway = {"enabled": True, "host": "x.example.org", "parentRefs": [{"name": "public", "sectionName": "https"}]}
    manifests = render({key: {"ingress": ingress, "gateway": gateway}, "networkPolicy": OPEN})
    [found] = of(manifests, "Ingress")
    assert found["metadata"]["name"] == name and found["metadata"]["annotations"] == {"a.example.org/b": "c"}
    assert found["spec"]["tls"] == [{"hosts": ["x.example.org"], "secretName": "tls"}]
    [rule] = found["spec"]["rules"]
    [path] = rule["http"]["paths"]
    service = named(manifests, "Service", name)["spec"]
    assert rule["host"] == "x.example.org" and path["backend"]["service"] == {"name": name, "port": {"name": "http"}}
    assert [(p["name"], p["port"]) for p in service["ports"]] == [("http", port)]
    [route] = of(manifests, "HTTPRoute")
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert route["spec"] == {
        "parentRefs": gateway["parentRefs"],
        "hostnames": ["x.example.org"],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                "backendRefs": [{"name": name, "port": port}],
            }
        ],
    }


def test_without_a_secret_the_controller_has_the_certificate() -> None:
    values = {"web": {"ingress": {"enabled": True, "host": "x.example.org"}}, "networkPolicy": OPEN}
    [found] = of(render(values), "Ingress")
    assert "tls" not in found["spec"] and "ingressClassName" not in found["spec"]


def on_a_cluster(*apis: str, values: Manifest | None = None) -> str:
    """What Helm says where the API server lists these groups besides Kubernetes' own."""
    versions = [part for api in ("apiregistration.k8s.io/v1", *apis) for part in ("--api-versions", api)]
    return call("template", "crawl2chat", str(CHART), *versions, values=values).stderr


def test_a_cluster_without_jobset_is_told_so_before_anything_runs() -> None:
    assert "install JobSet 0.10.0 or newer" in on_a_cluster()
    assert on_a_cluster("jobset.x-k8s.io/v1alpha2") == ""
    assert on_a_cluster(values={"training": {"enabled": False}}) == ""
