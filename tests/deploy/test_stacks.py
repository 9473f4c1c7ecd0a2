"""deploy/production-stack, deploy/llm-d and deploy/kserve: rendered by the stacks' own charts, held to their CRDs."""

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kvblend.cli.engine import CONNECTOR
from kvblend.core.order_fields import SESSION
from kvblend.core.settings import Settings
from tests.deploy.tools import CHART, DEPLOY, custom_schema, kinds, rendered, stack_chart, validate, validate_custom

FILES = sorted(path for folder in ("production-stack", "llm-d", "kserve") for path in (DEPLOY / folder).iterdir())
STACK = "production-stack-0.1.12.tgz"
MODELSERVICE = "llm-d-modelservice.tgz"
ROUTER = "llm-d-router-standalone-0.10.0.tgz"
GATEWAY = "llm-d-router-gateway-0.10.0.tgz"
GIB = 1 << 30
NIXL = {"kv_connector": "NixlConnector", "kv_buffer_device": "cpu"}
WITHIN_MULTI = {name: value for name, value in CONNECTOR.items() if name != "kv_load_failure_policy"}
"""The policy stands at the top."""
TRANSFERS: dict[str, list[Any]] = {
    "service": [],
    "router": [],
    "prefill-decode-router": [],
    "prefill-decode-service": [],
    "prefill-decode": [
        {
            "kv_connector": "MultiConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"connectors": [{**NIXL, "kv_role": "kv_producer"}, WITHIN_MULTI]},
        },
        {**NIXL, "kv_role": "kv_consumer", "kv_load_failure_policy": "recompute"},
    ],
}
"""What `--kv-transfer-config` is where it is not kvblend's connector alone."""


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def manifest_of(name: str, kind: str) -> dict[str, Any]:
    (found,) = kinds(documents(DEPLOY / "kserve" / name), kind)
    return found


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    return dict(spec["predictor"] if "predictor" in spec else spec["template"].get("spec", spec["template"]))


@cache
def pods() -> dict[str, dict[str, Any]]:
    """The pod with the engine that each stack's files make, by stack."""
    stack = rendered(stack_chart(STACK), f"--values={DEPLOY / 'production-stack' / 'engine.yaml'}")
    modelservice = rendered(stack_chart(MODELSERVICE), f"--values={DEPLOY / 'llm-d' / 'modelservice.yaml'}")
    return {
        "production-stack": pod_of(next(each for each in kinds(stack, "Deployment") if "model" in selector(each))),
        "llm-d": pod_of(kinds(modelservice, "Deployment")[0]),
        "llm-inference-service": pod_of(manifest_of("llm-inference-service.yaml", "LLMInferenceService")),
        "inference-service": pod_of(manifest_of("inference-service.yaml", "InferenceService")),
    }


def selector(deployment: dict[str, Any]) -> dict[str, str]:
    return dict(deployment["spec"]["selector"]["matchLabels"])


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_settings_and_connector_are_those_that_there_are(path: Path) -> None:
    said = [each for document in documents(path) for each in strings(document)]
    settings = {each for each in said if each.startswith("KVBLEND_")}
    assert settings <= {f"KVBLEND_{name.upper()}" for name in Settings.model_fields}
    transfers = [each.partition("=")[2] for each in said if each.startswith("--kv-transfer-config")]
    assert [json.loads(each) for each in transfers] == TRANSFERS.get(path.stem, [CONNECTOR])


def test_production_stack_renders_engine_and_service() -> None:
    engine = rendered(stack_chart(STACK), f"--values={DEPLOY / 'production-stack' / 'engine.yaml'}")
    service = rendered(CHART, f"--values={DEPLOY / 'production-stack' / 'service.yaml'}")
    for manifest in [*engine, *service]:
        if manifest["apiVersion"] != "production-stack.vllm.ai/v1alpha1":
            validate(manifest)
    (values,) = documents(DEPLOY / "production-stack" / "service.yaml")
    (external,) = values["externalEngines"]
    (deployment,) = [each for each in kinds(engine, "Deployment") if "model" in selector(each)]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    # the release there is `vllm`, here `rag`
    assert (labels | {"helm-release-name": "vllm"}).items() >= external["podSelector"].items()
    host = external["url"].removeprefix("http://").partition(":")[0]
    (own,) = [each for each in kinds(engine, "Service") if each["metadata"]["name"] == host.replace("vllm-", "rag-", 1)]
    ports = {port["port"]: port["targetPort"] for port in own["spec"]["ports"]}
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    targets = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert targets[ports[int(external["url"].rpartition(":")[2])]] == external["port"]
    control = int(external["control"].rpartition(":")[2])
    assert targets[ports[control]] == control
    assert {each["name"]: each.get("value") for each in container["env"]}["KVBLEND_CONTROL"].endswith(f":{control}")


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


@pytest.mark.parametrize("name", ["llm-inference-service.yaml", "inference-service.yaml"])
def test_kserve_takes_them(name: str) -> None:
    for manifest in documents(DEPLOY / "kserve" / name):
        validate(manifest)


def test_a_typo_in_a_custom_resource_is_caught() -> None:
    manifest = copy.deepcopy(manifest_of("llm-inference-service.yaml", "LLMInferenceService"))
    manifest["spec"]["template"]["containers"][0]["redinessProbe"] = {}
    with pytest.raises(jsonschema.ValidationError, match="redinessProbe"):
        validate(manifest)


def test_a_broken_rule_of_a_custom_resource_is_caught() -> None:
    """`replicas` and `scaling` exclude one another, by a CEL rule of the CRD; a picker that is a Service has a port."""
    manifest = copy.deepcopy(manifest_of("llm-inference-service.yaml", "LLMInferenceService"))
    manifest["spec"]["scaling"] = {"maxReplicas": 2, "wva": {"hpa": {}}}
    with pytest.raises(AssertionError, match="replicas and scaling are mutually exclusive"):
        validate_custom(manifest, custom_schema(manifest))
    pool = {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "spec": {
            "selector": {"matchLabels": {"llm-d.ai/model": "qwen"}},
            "targetPorts": [{"number": 8000}],
            "endpointPickerRef": {"kind": "Service", "name": "qwen-router-epp"},
        },
    }
    with pytest.raises(AssertionError, match="port is required when kind is 'Service'"):
        validate(pool)


@pytest.mark.parametrize("stack", ["production-stack", "llm-d", "llm-inference-service", "inference-service"])
def test_shared_memory_holds_the_cpu_tier_and_memory_both(stack: str) -> None:
    pod = pods()[stack]
    shm = next(each["emptyDir"] for each in pod["volumes"] if "shm" in each["name"])
    gibibytes = int(shm["sizeLimit"].removesuffix("Gi"))
    assert shm["medium"] == "Memory"
    own = {each["name"]: each for each in pod["containers"]}
    for container in own.values():
        sizes = {each["name"]: each.get("value") for each in container["env"]}
        assert gibibytes * GIB >= int(sizes["KVBLEND_CPU_BYTES"]) + GIB
        assert any(mount["mountPath"] == "/dev/shm" for mount in container["volumeMounts"])
        assert int(container["resources"]["limits"]["memory"].removesuffix("Gi")) > gibibytes
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 10001
    if len(own) == 2:
        controls = {
            each.partition("=")[2] for one in own.values() for each in one["args"] if each.startswith("--control")
        }
        assert controls == {"ipc:///run/kvblend/control.sock"} and pod["terminationGracePeriodSeconds"] == 40
