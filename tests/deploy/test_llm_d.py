"""deploy/llm-d: its values rendered by the charts of llm-d, and what its endpoint picker is told."""

from typing import Any

import pytest
import yaml

from kvblend.core.order_fields import SESSION
from tests.deploy.tools import CHART, DEPLOY, MODELSERVICE, documents, kinds, pod_of, rendered, stack_chart, validate

ROUTER = "llm-d-router-standalone-0.10.0.tgz"
GATEWAY = "llm-d-router-gateway-0.10.0.tgz"


def test_llm_d_renders_engine_and_service_in_one_pod() -> None:
    manifests = rendered(stack_chart(MODELSERVICE), f"--values={DEPLOY / 'llm-d' / 'modelservice.yaml'}")
    for manifest in manifests:
        validate(manifest)
    (deployment,) = kinds(manifests, "Deployment")
    assert [each["name"] for each in pod_of(deployment)["containers"]] == ["vllm", "service"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    (service,) = kinds(manifests, "Service")
    assert labels.items() >= service["spec"]["selector"].items()
    (picked,) = documents(DEPLOY / "llm-d" / "router.yaml")
    assert labels.items() >= picked["router"]["modelServers"]["matchLabels"].items()
    ports = {port["containerPort"] for each in pod_of(deployment)["containers"] for port in each["ports"]}
    assert {each["number"] for each in picked["router"]["modelServers"]["targetPorts"]} <= ports
    for container in pod_of(deployment)["containers"]:
        assert not any("gpu" in name for name in container["resources"]["limits"])


def test_llm_d_renders_prefill_and_decode_nodes_and_the_service_before_them() -> None:
    nodes = rendered(stack_chart(MODELSERVICE), f"--values={DEPLOY / 'llm-d' / 'prefill-decode.yaml'}")
    path = DEPLOY / "llm-d" / "prefill-decode-service.yaml"
    own = rendered(CHART, f"--values={path}")
    for manifest in [*nodes, *own]:
        validate(manifest)
    deployments = {each["metadata"]["name"].rpartition("-")[2]: each for each in kinds(nodes, "Deployment")}
    labels = {role: each["spec"]["template"]["metadata"]["labels"] for role, each in deployments.items()}
    (external,) = documents(path)[0]["externalEngines"]
    assert labels["prefill"].items() >= external["podSelector"].items()
    assert labels["decode"].items() >= external["peers"].items() and labels["prefill"] != labels["decode"]
    (headless,) = kinds(nodes, "Service")
    assert headless["spec"]["clusterIP"] == "None" and headless["spec"]["selector"].items() <= labels["prefill"].items()
    (port,) = headless["spec"]["ports"]
    assert external["control"] == f"tcp://{headless['metadata']['name']}:{port['port']}"
    engines = {role: pod_of(each)["containers"][0] for role, each in deployments.items()}
    assert {"name": "control", "containerPort": port["port"]} in engines["prefill"]["ports"]
    told = {each["name"]: each.get("value") for each in engines["prefill"]["env"]}
    assert told["KVBLEND_CONTROL"].endswith(f":{port['port']}")
    (valkey,) = [each for each in kinds(own, "Service") if each["metadata"]["name"].endswith("valkey")]
    assert told["KVBLEND_REMOTE"].startswith(f"redis://{valkey['metadata']['name']}:")
    block_sizes = {arg for each in engines.values() for arg in each["args"] if arg.startswith("--block-size")}
    assert len(block_sizes) == 1, "the KV of both has the same blocks"
    (policy,) = [each for each in kinds(own, "NetworkPolicy") if each["metadata"]["name"] == "rag-control-0"]
    assert policy["spec"]["ingress"][2] == {"from": [{"podSelector": {"matchLabels": external["peers"]}}]}


@pytest.mark.parametrize("name", ["router", "prefill-decode-router"])
def test_llm_d_router_keeps_to_one_server_by_the_header_that_the_service_sends(name: str) -> None:
    config = picker(name)
    named = {each.get("name", each["type"]): each.get("parameters", {}) for each in config["plugins"]}
    assert len(named) == len(config["plugins"]) and config["apiVersion"] == "llm-d.ai/v1alpha1"
    profiles = {
        each["name"]: [plugin["pluginRef"] for plugin in each["plugins"]] for each in config["schedulingProfiles"]
    }
    handlers = {each for each in named if each.endswith(("-profile-handler", "-decider"))}
    assert {each for used in profiles.values() for each in used} == set(named) - handlers
    affinity = named["session-affinity-scorer"]
    assert affinity["strategy"] == "session_id"
    assert affinity["sessionIdConfig"]["sources"] == [{"header": SESSION}]
    (own,) = [profile for profile, used in profiles.items() if "session-affinity-scorer" in used]
    assert own == affinity.get("profileName", "default")


def test_llm_d_router_prefills_and_decodes_by_role() -> None:
    config = picker("prefill-decode-router")
    profiles = {each["name"]: each["plugins"][0]["pluginRef"] for each in config["schedulingProfiles"]}
    assert profiles == {"prefill": "prefill-filter", "decode": "decode-filter"}
    (handler,) = [each for each in config["plugins"] if each["type"] == "disagg-profile-handler"]
    assert handler["parameters"] == {"deciders": {"prefill": "always-disagg-pd-decider"}}
    nodes = rendered(stack_chart(MODELSERVICE), f"--values={DEPLOY / 'llm-d' / 'prefill-decode.yaml'}")
    (values,) = documents(DEPLOY / "llm-d" / "prefill-decode-router.yaml")
    picked = values["router"]["modelServers"]["matchLabels"]
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in kinds(nodes, "Deployment")]
    assert {each["llm-d.ai/role"] for each in labels if each.items() >= picked.items()} == {"prefill", "decode"}
    for pod in (pod_of(each) for each in kinds(nodes, "Deployment")):
        ports = {
            port["containerPort"]
            for each in [*pod["containers"], *pod.get("initContainers", [])]
            for port in each["ports"]
        }
        assert {each["number"] for each in values["router"]["modelServers"]["targetPorts"]} <= ports


@pytest.mark.parametrize("name", ["router", "prefill-decode-router"])
def test_llm_d_router_renders(name: str) -> None:
    values = DEPLOY / "llm-d" / f"{name}.yaml"
    manifests = rendered(stack_chart(ROUTER), f"--values={values}", release="qwen-router")
    for manifest in manifests:
        validate(manifest)
    (deployment,) = kinds(manifests, "Deployment")
    (epp,) = [each for each in pod_of(deployment)["containers"] if each["name"] == "epp"]
    assert epp["image"].endswith("endpoint-picker:v0.10.0")
    assert {"--allow-experimental-plugins=true", "--endpoint-selector", "/config/kvblend.yaml"} <= set(epp["args"])
    (config,) = [each for each in kinds(manifests, "ConfigMap") if "kvblend.yaml" in each["data"]]
    assert yaml.safe_load(config["data"]["kvblend.yaml"]) == picker(name)
    (service,) = kinds(manifests, "Service")
    urls = {f"http://{service['metadata']['name']}:{port['port']}" for port in service["spec"]["ports"]}
    (asked,) = documents(DEPLOY / "llm-d" / "prefill-decode-service.yaml")
    assert asked["externalEngines"][0]["url"] in urls
    behind = rendered(stack_chart(GATEWAY), f"--values={values}", "--set=router.inferencePool.create=true")
    (pool,) = kinds(behind, "InferencePool")
    validate(pool)


def picker(name: str) -> dict[str, Any]:
    """The configuration of llm-d's endpoint picker in the values for its router."""
    (values,) = documents(DEPLOY / "llm-d" / f"{name}.yaml")
    own = values["router"]["epp"]
    config: dict[str, Any] = yaml.safe_load(own["pluginsCustomConfig"][own["pluginsConfigFile"]])
    return config
