"""The manifests of ``deploy/kserve``: held against KServe's models and Kubernetes' schemas, and against the servers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gjson
import httpx
import kubernetes_validate
import pytest
import yaml
from tests import kserve_models
from tests.integration.test_deploy import KUBERNETES_VERSIONS, kubernetes, pod
from tests.servers import run, tier_server

from dimec.bundle import Bundle

KSERVE = Path(__file__).parents[2] / "deploy" / "kserve"
OVERLAYS = ("base", "scale-to-zero")
OWN = {"minReplicas", "maxReplicas", "autoScaling", "scaleMetric", "scaleTarget"}
"""What KServe adds to a pod in a predictor, of what we use."""


def resources(overlay: str) -> dict[tuple[str, str], Any]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    built = run(["kubectl", "kustomize", str(KSERVE / overlay)])
    assert built.returncode == 0, built.stderr
    found = yaml.safe_load_all(built.stdout)
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_manifests_are_what_kserve_and_kubernetes_take(overlay: str) -> None:
    for (kind, name), document in resources(overlay).items():
        assert document["metadata"]["namespace"] == "dimec"
        if kind == "InferenceService":
            kserve_models.check(document, "V1beta1InferenceService", name)
            spec = document["spec"]["predictor"]
            (container,) = spec["containers"]
            assert container["name"] == "kserve-container"
            own = {key: value for key, value in spec.items() if key not in OWN}
            document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": own}
        for version in KUBERNETES_VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)


def test_the_models_of_kserve_refuse_what_they_do_not_have() -> None:
    document = resources("base")["InferenceService", "edge"]
    document["spec"]["predictor"]["minReplica"] = 2
    with pytest.raises(AssertionError, match="minReplica"):
        kserve_models.check(document, "V1beta1InferenceService")


def test_the_servers_are_those_of_the_other_manifests() -> None:
    others = kubernetes()
    for tier in ("edge", "cloud"):
        (own,) = resources("base")["InferenceService", tier]["spec"]["predictor"]["containers"]
        (other,) = pod(others, tier)["containers"]
        left_out = {"--port=8080", "--port=8100"}
        left_out |= {each for each in other["args"] if each.startswith("--tls-")}  # the gateway's
        assert [each for each in own["args"] if each not in left_out] == [
            each for each in other["args"] if each not in left_out
        ]
        for key in ("resources", "securityContext", "lifecycle"):
            assert own[key] == other[key]
        budget = resources("base")["PodDisruptionBudget", tier]["spec"]
        assert budget["selector"]["matchLabels"] == {"serving.kserve.io/inferenceservice": tier}


def test_only_the_cloud_goes_to_no_pod_and_knative_holds_its_requests() -> None:
    base, zero = resources("base"), resources("scale-to-zero")
    assert zero["InferenceService", "edge"] == base["InferenceService", "edge"]
    assert ("PodDisruptionBudget", "cloud") not in zero  # of no pods there is nothing to keep
    for (kind, _), document in {**base, **zero}.items():
        if kind != "InferenceService":
            continue
        spec, told = document["spec"]["predictor"], document["metadata"]["annotations"]
        knative = told["serving.kserve.io/deploymentMode"] == "Knative"
        assert (spec["minReplicas"] == 0) == knative == ("autoScaling" not in spec)
        if knative:  # which takes no pod with these
            assert not {"lifecycle"} & set(spec["containers"][0])
            assert not {"securityContext", "terminationGracePeriodSeconds"} & set(spec)
            (container,) = spec["containers"]
            assert container["securityContext"]["runAsNonRoot"]


def test_the_queue_that_pods_are_started_for_is_one_that_servers_tell(tiny_bundle: Bundle) -> None:
    with tier_server("edge", tiny_bundle.folder) as server:
        page = httpx.get(f"{server.url}/metrics").text
    names = {line.split()[0] for line in page.splitlines() if not line.startswith("#")}
    for tier in ("edge", "cloud"):
        document = resources("base")["InferenceService", tier]
        (metric,) = document["spec"]["predictor"]["autoScaling"]["metrics"]
        query = metric["external"]["metric"]["query"]
        (name,) = [each for each in names if query == f'sum({each}{{tier="{tier}"}})']
        assert name == "dimec_queue_requests"
        # the scrape job of docs/how-to/deploy.md makes the label `tier` of this one
        assert document["metadata"]["labels"]["app.kubernetes.io/component"] == tier


def test_the_graph_goes_on_where_the_small_model_is_unsure(tiny_bundle: Bundle) -> None:
    graph = yaml.safe_load((KSERVE / "graph.yaml").read_text())
    kserve_models.check(graph, "V1alpha1InferenceGraph")
    small, large = graph["spec"]["nodes"]["root"]["steps"]
    assert "condition" not in small and large["data"] == "$request"
    asks = httpx.URL(large["serviceUrl"]).path
    with tier_server("device", tiny_bundle.folder) as server:
        asked = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a gripping film"]}
        said = httpx.post(f"{server.url}{asks}", json={"inputs": [asked]}).raise_for_status().json()
    (output,) = [each for each in said["outputs"] if each["name"] == "probabilities"]
    for probabilities in ([0.97, 0.03], [0.08, 0.92], [0.5, 0.5], [0.12, 0.88], [0.3, 0.3, 0.4]):
        output["data"] = probabilities
        goes_on = gjson.GJSON(said).get(large["condition"], quiet=True) is not None
        assert goes_on == (max(probabilities) < 0.9), json.dumps(probabilities)
