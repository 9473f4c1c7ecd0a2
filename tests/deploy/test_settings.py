"""The settings and remote tiers that deploy/chart takes are those that there are, with the bounds that they have."""

import json
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from kvblend.core.settings import Settings
from kvblend.store.remote.urls import KNOWN
from tests.deploy.tools import CHART, MODEL, helm

OF_THE_CHART = {
    *("HOME", "CONTROL", "CPU_PATH", "CPU_BYTES", "DISK_PATH", "DISK_BYTES", "WRITE", "REMOTE", "REMOTE_PASSWORD"),
    *("KEYS", "API_KEYS", "API_KEY", "ENGINE_API_KEY", "URL", "PEER_ADDRESS", "PEER_TOKEN"),
    *("EMBEDDING_API_KEY", "RERANKER_API_KEY"),
}
"""Settings that the chart reckons itself, a client's, and secrets, which are no value of a chart."""
FIELDS = Settings.model_json_schema()["properties"]
SCHEMA = json.loads((CHART / "values.schema.json").read_text())["properties"]
PATTERNS = {"integer": "^[0-9]+$", "number": r"^[0-9]+(\.[0-9]+)?$"}
"""Values of an environment are strings, whose bounds a schema cannot compare: files/setting_bounds.yaml has them."""


def field_of(name: str) -> dict[str, Any]:
    """What pydantic's schema says of the setting that the environment variable `name` gives, where it is given."""
    field: dict[str, Any] = FIELDS[name.removeprefix("KVBLEND_").lower()]
    kinds = [each for each in field.get("anyOf", [field]) if each["type"] != "null"]
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def in_chart(field: dict[str, Any]) -> dict[str, Any]:
    """The chart's schema of a setting, whose values are strings."""
    match field:
        case {"anyOf": [{"enum": words}, {"type": "integer", "minimum": 0}]}:
            return {"type": "string", "pattern": f"^({'|'.join(words)}|[0-9]+)$"}
        case {"enum": words}:
            return {"enum": words}
        case {"type": "boolean"}:
            return {"enum": [True, False, "1", "0", "true", "false"]}
        case {"type": "integer" | "number" as kind}:
            return {"type": "string", "pattern": PATTERNS[kind]}
    return {"type": "string", **({"pattern": field["pattern"]} if "pattern" in field else {})}


def test_settings_are_those_that_there_are() -> None:
    assert SCHEMA["settings"]["additionalProperties"] is False
    assert set(SCHEMA["settings"]["properties"]) == {
        f"KVBLEND_{name.upper()}" for name in Settings.model_fields if name.upper() not in OF_THE_CHART
    }
    for template in sorted((CHART / "templates").iterdir()):
        for word in template.read_text().split():
            if word.startswith("KVBLEND_"):
                assert word.strip('"') in {f"KVBLEND_{name.upper()}" for name in Settings.model_fields}


def test_settings_have_the_bounds_that_they_have() -> None:
    for name, schema in SCHEMA["settings"]["properties"].items():
        assert schema == in_chart(field_of(name)), name
    own = {
        name: {key: float(field[key]) for key in ("minimum", "exclusiveMinimum", "maximum") if key in field}
        for name in SCHEMA["settings"]["properties"]
        if (field := field_of(name)).get("type") in PATTERNS
    }
    bounds = yaml.safe_load((CHART / "files" / "setting_bounds.yaml").read_text())
    assert own == {name: {key: float(value) for key, value in each.items()} for name, each in bounds.items()}


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("KVBLEND_CODEC=zip", "value must be one of 'raw', 'fp8', 'int8', 'int4', 'entropy'"),
        ("KVBLEND_RECOMPUTE_RATIO=7", "settings.KVBLEND_RECOMPUTE_RATIO is 7: it is to be 1 or less"),
        ("KVBLEND_RECOMPUTE_RATIO=-1", "'-1' does not match pattern"),
        ("KVBLEND_PARSE_BYTES=67108863", "it is to be 67108864 or more"),
        ("KVBLEND_ENGINE_TIMEOUT=0.0", "it is to be above 0"),
        ("KVBLEND_ENCODE=sometimes", "'sometimes' does not match pattern"),
        ("KVBLEND_OPEN_ROUTES=healthz", "'healthz' does not match pattern"),
        ("KVBLEND_DROP_IN=maybe", "value must be one of true, false, '1', '0'"),
        ("KVBLEND_MAX_JOBS=many", "'many' does not match pattern"),
    ],
)
def test_the_chart_refuses_what_the_settings_refuse(value: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = helm("template", "rag", CHART, MODEL, f"--set-string=settings.{value}")
    assert refused.returncode != 0 and sentence in refused.stderr and value.partition("=")[0] in refused.stderr
    monkeypatch.setenv(*value.split("="))
    with pytest.raises(ValidationError):
        Settings()


@pytest.mark.parametrize(
    "value",
    [
        *("KVBLEND_CODEC=int4", "KVBLEND_RECOMPUTE_RATIO=1", "KVBLEND_RECOMPUTE_RATIO=0.0", "KVBLEND_DROP_IN=0"),
        *("KVBLEND_PARSE_BYTES=67108864", "KVBLEND_ENCODE=1000", "KVBLEND_OPEN_ROUTES=docs readyz"),
    ],
)
def test_the_chart_takes_what_the_settings_take(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = helm("template", "rag", CHART, MODEL, f"--set-string=settings.{value}")
    assert taken.returncode == 0, taken.stderr
    monkeypatch.setenv(*value.split("="))
    assert Settings().model_fields_set >= {value.partition("=")[0].removeprefix("KVBLEND_").lower()}


def test_remote_tiers_are_those_that_there_are() -> None:
    pattern = SCHEMA["tiers"]["properties"]["remote"]["items"]["pattern"]
    schemes = pattern.removeprefix("^(").partition(")")[0].split("|")
    assert [f"{scheme}://" for scheme in schemes] == KNOWN.split(", ")
