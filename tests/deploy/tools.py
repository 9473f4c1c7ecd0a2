"""What checks manifests: Helm, Kubernetes' own schemas, other stacks' charts and CustomResourceDefinitions."""

import gzip
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import cel
import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy.fetch_tools import PROGRAMS

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "chart"
STACKS = ROOT.parent / "shared" / "deploy"
"""Charts and CRDs of other stacks, beside the repository where somebody has put them."""
MODELSERVICE = "llm-d-modelservice.tgz"
KUBERNETES = "1.37.0"
MODEL = "--set=model=Qwen/Qwen3-0.6B"


def program(name: str) -> str:
    """The path of a program; the test is skipped where it is not there."""
    kept = PROGRAMS / name
    found = str(kept) if kept.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here: `make check-deploy` fetches it")
    return found


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("helm"), *arguments], capture_output=True, text=True)


def rendered(chart: Path, *arguments: str | Path, release: str = "rag") -> list[dict[str, Any]]:
    """The manifests that `helm template` makes of a chart."""
    return [manifest for manifest in yaml.safe_load_all(_template(release, chart, arguments)) if manifest]


@cache
def _template(release: str, chart: Path, arguments: tuple[str | Path, ...]) -> str:
    ended = helm("template", release, chart, *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def stack_chart(name: str) -> Path:
    chart = STACKS / "charts" / name
    if not chart.exists():
        pytest.skip(f"the chart {name} of another stack is not here")
    return chart


def kinds(manifests: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def documents(path: Path) -> list[Any]:
    """What stands in a YAML file."""
    return list(yaml.safe_load_all(path.read_text()))


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The specification of the pods that a manifest makes."""
    spec: dict[str, Any] = manifest["spec"]
    return dict(spec["predictor"] if "predictor" in spec else spec["template"].get("spec", spec["template"]))


def selector(deployment: dict[str, Any]) -> dict[str, str]:
    """The labels by which a Deployment finds its pods."""
    return dict(deployment["spec"]["selector"]["matchLabels"])


def containers(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The containers of all pods, by name."""
    pods = [each["spec"]["template"]["spec"] for each in manifests if "template" in each.get("spec", {})]
    return {container["name"]: container for pod in pods for container in pod["containers"]}


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container["env"]}


def validate(manifest: dict[str, Any]) -> None:
    """Hold a manifest to the schema of its kind: Kubernetes' own, or a CRD's with its CEL rules.

    Raises kubernetes_validate.ValidationError, jsonschema.ValidationError or AssertionError. Fields that the schema
    does not have are errors too.
    """
    group = manifest["apiVersion"].rpartition("/")[0]
    if "." not in group or (group.endswith(".k8s.io") and group.startswith(("networking", "policy", "rbac"))):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    else:
        validate_custom(manifest, custom_schema(manifest))


def custom_schema(manifest: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI schema of a custom resource; the test is skipped where its CRD is not here."""
    group, _, version = manifest["apiVersion"].rpartition("/")
    for path in sorted((STACKS / "crds").glob(f"{group}_*.json.gz")):
        definition = json.loads(gzip.decompress(path.read_bytes()))
        if definition["spec"]["names"]["kind"] == manifest["kind"]:
            for each in definition["spec"]["versions"]:
                if each["name"] == version:
                    return dict(each["schema"]["openAPIV3Schema"])
            raise AssertionError(f"{manifest['kind']} has no version {version}")
    pytest.skip(f"the CRD of {group} {manifest['kind']} is not here")


def validate_custom(manifest: dict[str, Any], schema: dict[str, Any]) -> None:
    """Hold a custom resource to its CRD's schema, closed to unknown fields, and to the schema's CEL rules."""
    jsonschema.Draft7Validator(_closed(schema)).validate(manifest)
    _check_rules(manifest, schema, manifest["kind"])


def _closed(schema: Any, *, top: bool = True) -> Any:
    """The schema as the API server takes it with strict field validation."""
    if isinstance(schema, list):
        return [_closed(each, top=False) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        key: {name: _closed(each, top=False) for name, each in value.items()}
        if key == "properties"
        else _closed(value, top=False)
        for key, value in schema.items()
    }
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    if "properties" in schema and "additionalProperties" not in schema and not open_ended:
        if top:
            closed["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}
        closed["additionalProperties"] = False
    return closed


def _check_rules(value: Any, schema: dict[str, Any], where: str) -> None:
    if value is None:
        return
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"]:  # of changes, not of a manifest
            holds = cel.evaluate(rule["rule"], {"self": value})
            assert holds is True, f"{where}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        for name, each in value.items():
            inner = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if isinstance(inner, dict):
                _check_rules(each, inner, f"{where}.{name}")
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for number, each in enumerate(value):
            _check_rules(each, schema["items"], f"{where}[{number}]")
