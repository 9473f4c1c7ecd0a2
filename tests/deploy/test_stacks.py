"""deploy/production-stack, deploy/llm-d and deploy/kserve: rendered by the stacks' own charts, held to their CRDs."""

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kvblend.cli.engine import CONNECTOR
from kvblend.cli.kv_size import KVSize
from kvblend.cli.pod_size import chart_values
from kvblend.core.order_fields import SESSION
from kvblend.core.settings import Settings
from tests.deploy.tools import (
    CHART,
    DEPLOY,
    MODELSERVICE,
    custom_schema,
    documents,
    environment,
    kinds,
    pod_of,
    rendered,
    selector,
    stack_chart,
    validate,
    validate_custom,
)

FILES = sorted(path for folder in ("production-stack", "llm-d", "kserve") for path in (DEPLOY / folder).iterdir())
STACK = "production-stack-0.1.12.tgz"
KSERVE = ("llm-inference-service", "inference-service")
GIB = 1 << 30
MODEL = "Qwen/Qwen3-0.6B"
MODEL_SIZE = KVSize(num_layers=28, num_kv_heads=8, head_dim=128, dtype_bytes=2, num_parameters=596_049_920)
"""As its configuration has it."""
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


def manifest_of(name: str, kind: str) -> dict[str, Any]:
    (found,) = kinds(documents(DEPLOY / "kserve" / name), kind)
    return found


@cache
def pods() -> dict[str, dict[str, Any]]:
    """The pod with the engine that each stack's files make, by stack."""
    stack = rendered(stack_chart(STACK), f"--values={DEPLOY / 'production-stack' / 'engine.yaml'}", release="vllm")
    modelservice = rendered(stack_chart(MODELSERVICE), f"--values={DEPLOY / 'llm-d' / 'modelservice.yaml'}")
    nodes = rendered(stack_chart(MODELSERVICE), f"--values={DEPLOY / 'llm-d' / 'prefill-decode.yaml'}")
    prefill_and_decode = {
        each["metadata"]["name"].rpartition("-")[2]: pod_of(each) for each in kinds(nodes, "Deployment")
    }
    return {
        **{f"llm-d-{role}": pod for role, pod in prefill_and_decode.items()},
        "production-stack": pod_of(next(each for each in kinds(stack, "Deployment") if "model" in selector(each))),
        "llm-d": pod_of(kinds(modelservice, "Deployment")[0]),
        "llm-inference-service": pod_of(manifest_of("llm-inference-service.yaml", "LLMInferenceService")),
        "inference-service": pod_of(manifest_of("inference-service.yaml", "InferenceService")),
    }


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


def test_production_stack_renders_engines_their_router_and_the_service_before_it() -> None:
    stack = rendered(stack_chart(STACK), f"--values={DEPLOY / 'production-stack' / 'engine.yaml'}", release="vllm")
    own = rendered(CHART, f"--values={DEPLOY / 'production-stack' / 'service.yaml'}")
    for manifest in [*stack, *own]:
        if manifest["apiVersion"] != "production-stack.vllm.ai/v1alpha1":
            validate(manifest)
    (values,) = documents(DEPLOY / "production-stack" / "service.yaml")
    (external,) = values["externalEngines"]
    services = {each["metadata"]["name"]: each["spec"] for each in kinds(stack, "Service")}
    host, _, port = external["url"].removeprefix("http://").partition(":")
    router = services[host]
    (asked,) = [each for each in kinds(stack, "Deployment") if router["selector"].items() <= selector(each).items()]
    args = pod_of(asked)["containers"][0]["args"]
    assert int(port) in {each["port"] for each in router["ports"]}
    assert args[args.index("--routing-logic") + 1] == "session" and args[args.index("--session-key") + 1] == SESSION
    (engines,) = [each for each in kinds(stack, "Deployment") if "model" in selector(each)]
    labels = engines["spec"]["template"]["metadata"]["labels"]
    assert engines["spec"]["replicas"] > 1 and labels.items() >= external["podSelector"].items()
    host, _, port = external["control"].removeprefix("tcp://").partition(":")
    headless = services[host]
    assert headless["clusterIP"] == "None" and labels.items() >= headless["selector"].items()
    assert [each["port"] for each in headless["ports"]] == [int(port)]
    container = pod_of(engines)["containers"][0]
    assert {external["port"], int(port)} <= {each["containerPort"] for each in container["ports"]}
    told = environment(container)
    assert told["KVBLEND_CONTROL"].endswith(f":{port}")
    assert any(
        told["KVBLEND_REMOTE"].startswith(f"redis://{each['metadata']['name']}:") for each in kinds(own, "Service")
    )
    assert not kinds(stack, "PersistentVolumeClaim"), "one claim would be mounted by all engines"
    assert told["HF_HOME"] in {each["mountPath"] for each in container["volumeMounts"]}


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


@pytest.mark.parametrize("stack", ["production-stack", "llm-d", "llm-d-prefill", "llm-d-decode", *KSERVE])
def test_engines_have_the_memory_that_kv_size_reckons(stack: str) -> None:
    """Of the files' model: weights, vLLM itself and a KV cache of 65,536 tokens, beside what lies in /dev/shm."""
    pod = pods()[stack]
    (engine,) = [each for each in pod["containers"] if each["command"][0] == "vllm"]
    sizes = chart_values(MODEL, MODEL_SIZE, num_passages=1, passage_tokens=256, codec="entropy")["engine"]
    told = environment(engine)
    assert int(told["VLLM_CPU_KVCACHE_SPACE"]) == sizes["kvCacheGiB"]
    shm_gib = int(told.get("KVBLEND_CPU_BYTES", 0)) // GIB + 1
    (shm,) = [each["emptyDir"] for each in pod["volumes"] if "shm" in each["name"]]
    assert shm == {"medium": "Memory", "sizeLimit": f"{shm_gib}Gi"}
    for kind in ("requests", "limits"):
        assert engine["resources"][kind]["memory"] == f"{sizes['memoryGiB'] + shm_gib}Gi"
    assert MODEL in engine["command"] + engine.get("args", [])


def test_home_volumes_hold_the_disk_tier_models_and_catalogs() -> None:
    stack = rendered(stack_chart(MODELSERVICE), f"--values={DEPLOY / 'llm-d' / 'modelservice.yaml'}")
    manifests = [*stack, *(each for name in KSERVE for each in documents(DEPLOY / "kserve" / f"{name}.yaml"))]
    claims = kinds(manifests, "PersistentVolumeClaim")
    sizes = chart_values(MODEL, MODEL_SIZE, num_passages=1, passage_tokens=256, codec="entropy")
    beside_gib = sizes["home"]["storageGiB"] - sizes["tiers"]["diskGiB"]
    disk_gib = int(environment(pods()["llm-d"]["containers"][0])["KVBLEND_DISK_BYTES"]) // GIB
    assert len(claims) == 3
    for claim in claims:
        assert int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) >= disk_gib + beside_gib


@pytest.mark.parametrize("stack", ["production-stack", "llm-d", "llm-d-prefill", *KSERVE])
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
