"""deploy/chart, rendered by Helm and held to Kubernetes' schemas."""

import copy
import json
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from kvblend.cli.app import app
from kvblend.cli.engine import CONNECTOR, engine_environment, watching_arguments
from kvblend.cli.run_service import END_AFTER_S
from kvblend.core.settings import Settings, TracingSettings
from kvblend.store.placement import tiers_of
from tests.deploy.tools import CHART, MODEL, ROOT, containers, environment, helm, kinds, rendered, validate

LAYOUTS = {
    "pod": (),
    "hostPath": ("--set=layout=hostPath", r"--set=nodeSelector.kubernetes\.io/hostname=one"),
    "remote": ("--set=layout=remote,engine.replicas=2,valkey.enabled=true",),
}
EVERYTHING = (
    "--set=podMonitor.enabled=true,podMonitor.alerts=true,engine.gpus=2,image.tag=cuda",
    "--set=settings.KVBLEND_CODEC=raw,service.args={--embedding-model=a/b}",
    *(f"--set=secrets.{name}.name=s,secrets.{name}.key={name}" for name in ("apiKey", "engineApiKey", "keys")),
    "--set=secrets.remotePassword.name=s,secrets.remotePassword.key=p,tolerations[0].operator=Exists",
    "--set=networkPolicy.monitoring[0].namespaceSelector.matchLabels.name=monitoring",
    "--set=tiers.remote={s3://passages,rediss://cache:6379/0?ssl_ca_certs=/etc/cache/ca.crt,mooncake://master:50051}",
    "--set=envFrom[0].secretRef.name=aws,extraEnv[0].name=AWS_REGION,extraEnv[0].value=eu-central-1",
    "--set=serviceAccountName=passages",
    "--set=extraVolumes[0].name=cache,extraVolumes[0].secret.secretName=cache",
    "--set=extraVolumeMounts[0].name=cache,extraVolumeMounts[0].mountPath=/etc/cache",
    "--set=extraVolumeMounts[0].readOnly=true",
)
EXTERNAL = {
    "url": "http://vllm:8000",
    "control": "tcp://vllm:5600",
    "port": 8000,
    "podSelector": {"model": "qwen"},
}


@pytest.mark.parametrize("more", [(), EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_manifests_are_kubernetes(layout: str, more: tuple[str, ...]) -> None:
    manifests = rendered(CHART, MODEL, *LAYOUTS[layout], *more)
    for manifest in manifests:
        if not manifest["apiVersion"].startswith("monitoring.coreos.com"):  # of the Prometheus operator
            validate(manifest)
    assert len(kinds(manifests, "PodMonitor")) == len(kinds(manifests, "PrometheusRule")) == (1 if more else 0)
    for rule in kinds(manifests, "PrometheusRule"):
        assert rule["spec"] == yaml.safe_load((CHART / "files" / "alerts.yml").read_text())
    assert helm("lint", CHART, "--strict", MODEL, *LAYOUTS[layout], *more).returncode == 0


def test_a_typo_is_caught() -> None:
    """In values by the chart's schema, in a template by Kubernetes' own."""
    for typo in ("tiers.cpuGib=4", "settings.KVBLEND_GAURD_RATIO=0.1", "layuot=pod", "secrets.apiKey.nmae=x"):
        refused = helm("template", "rag", CHART, MODEL, f"--set-string={typo}")
        assert refused.returncode != 0 and typo.split("=")[0].split(".")[-1] in refused.stderr, typo
    (deployment,) = kinds(rendered(CHART, MODEL), "Deployment")
    planted = copy.deepcopy(deployment)
    planted["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="redinessProbe"):
        validate(planted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_engine_is_started_as_serve_starts_it(layout: str) -> None:
    engine = containers(rendered(CHART, MODEL, *LAYOUTS[layout]))["engine"]
    options = dict(argument.partition("=")[::2] for argument in engine["args"])
    assert json.loads(options["--kv-transfer-config"]) == CONNECTOR
    assert options["--load-format"] == "kvblend" and options["--scheduling-policy"] == "priority"
    assert {"--enable-prompt-tokens-details", "--enable-per-request-metrics"} <= options.keys()
    assert "--logging-config.formatter" not in options


def test_the_engine_logs_as_the_service_does() -> None:
    engine = containers(rendered(CHART, MODEL, "--set=settings.KVBLEND_LOG_FORMAT=json"))["engine"]
    assert "--logging-config.formatter=json" in engine["args"]
    assert environment(engine)["KVBLEND_LOG_FORMAT"] == "json"


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_engine_sends_its_spans_where_the_service_does(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the arguments and the environment that `kvblend serve` would give to a vLLM of its own."""
    told = f"--set=tracing.endpoint=http://collector:4318/,tracing.protocol={protocol}"
    own = containers(rendered(CHART, MODEL, told))
    for name, value in environment(own["service"]).items():
        if name.startswith("OTEL_"):
            monkeypatch.setenv(name, value)
    option, endpoint = watching_arguments(Settings(), TracingSettings())
    assert f"{option}={endpoint}" in own["engine"]["args"]
    served = engine_environment(control="ipc:///unused")
    spans = {name: value for name, value in environment(own["engine"]).items() if name.startswith("OTEL_")}
    assert spans == {name: served[name] for name in ("OTEL_SERVICE_NAME", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")}
    assert spans["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == protocol
    untraced = containers(rendered(CHART, MODEL))
    assert not any(name.startswith("OTEL_") for each in untraced.values() for name in environment(each))


def test_an_engine_without_statistics_is_not_told_to_measure_requests() -> None:
    told = "--set=engine.args[0]=--disable-log-stats,tracing.endpoint=http://collector:4318"
    engine = containers(rendered(CHART, MODEL, told))["engine"]
    assert not {"--enable-per-request-metrics", "--otlp-traces-endpoint"} & {
        argument.partition("=")[0] for argument in engine["args"]
    }


def test_the_service_is_started_by_options_that_there_are() -> None:
    command, _, *options = containers(rendered(CHART, MODEL, *LAYOUTS["remote"]))["service"]["args"]
    told = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"}).stdout
    assert len(options) == 6 and all(option.partition("=")[0] in told for option in options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_service_and_engine_meet(layout: str) -> None:
    """Their control addresses, ports and tiers, and for layout remote each engine's own name."""
    manifests = rendered(CHART, MODEL, *LAYOUTS[layout])
    own = containers(manifests)
    service, engine = own["service"], own["engine"]
    controls = [argument.partition("=")[2] for argument in service["args"] if argument.startswith("--control")]
    urls = [argument.partition("=")[2] for argument in service["args"] if argument.startswith("--engine-url")]
    ports = {port["name"]: port["containerPort"] for port in engine["ports"]}
    assert all(url.endswith(f":{ports['engine']}") for url in urls) and len(urls) == len(controls)
    own_control = environment(engine)["KVBLEND_CONTROL"]
    if layout == "remote":
        assert own_control == f"tcp://0.0.0.0:{ports['control']}"
        assert controls == [f"tcp://rag-engine-{number}.rag-engine:{ports['control']}" for number in (0, 1)]
        for each in (service, engine):
            assert environment(each)["KVBLEND_REMOTE"] == "redis://rag-valkey:6379/0"
            assert environment(each)["KVBLEND_WRITE"] == "remote"
    else:
        assert controls == [own_control] == ["ipc:///run/kvblend/control.sock"]
        mounts = [{each["mountPath"]: each["name"] for each in one["volumeMounts"]} for one in (service, engine)]
        assert mounts[0]["/run/kvblend"] == mounts[1]["/run/kvblend"] == "control"
        tiers = ["KVBLEND_CPU_BYTES", "KVBLEND_DISK_BYTES", "KVBLEND_CPU_PATH", "KVBLEND_DISK_PATH"]
        assert [environment(service).get(name) for name in tiers] == [environment(engine).get(name) for name in tiers]
    named = {each["metadata"]["name"]: each["spec"] for each in kinds(manifests, "Service")}
    assert layout == "pod" or named["rag-engine"]["clusterIP"] == "None"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_store_takes_what_the_chart_gives_it(layout: str, tmp_path: Path) -> None:
    """Both pods' environments, with small tiers in place of those of so many GiB, open a store."""
    for container in ("service", "engine"):
        own = environment(containers(rendered(CHART, MODEL, *LAYOUTS[layout]))[container])
        settings = Settings(
            home=tmp_path / container,
            cpu_path=tmp_path / container / "cpu",
            cpu_bytes=min(1 << 20, int(own["KVBLEND_CPU_BYTES"])),
            disk_bytes=min(1 << 20, int(own["KVBLEND_DISK_BYTES"])),
        )
        for tier in tiers_of(settings):
            tier.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_and_drains_have_room(layout: str) -> None:
    manifests = rendered(CHART, MODEL, *LAYOUTS[layout])
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for manifest in manifests:
        pod = manifest.get("spec", {}).get("template", {}).get("spec")
        if pod is None or manifest["metadata"]["name"] == "rag-valkey":
            continue
        shm = next(each for each in pod["volumes"] if each["name"] == "shm")["emptyDir"]
        assert shm["medium"] == "Memory"
        size = int(shm["sizeLimit"].removesuffix("Gi"))
        assert size == (1 if layout == "hostPath" else values["tiers"]["shmGiB"])
        before_s = max(each["lifecycle"]["preStop"]["sleep"]["seconds"] for each in pod["containers"])
        assert pod["terminationGracePeriodSeconds"] > before_s + END_AFTER_S + 2
        for container in pod["containers"]:
            if container["name"] == "engine":  # what lies in memory counts as its own
                limit = int(container["resources"]["limits"]["memory"].removesuffix("Gi"))
                assert limit >= values["engine"]["memoryGiB"] + size
    sleeps = {
        name: each["lifecycle"]["preStop"]["sleep"]["seconds"]
        for name, each in containers(manifests).items()
        if name != "valkey"
    }
    assert sleeps["engine"] > sleeps["service"] + 10  # the service has drained before its engine goes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pods_have_few_rights(layout: str) -> None:
    """The restricted Pod Security Standard, but for the folders of layout hostPath."""
    for manifest in rendered(CHART, MODEL, *LAYOUTS[layout]):
        pod = manifest.get("spec", {}).get("template", {}).get("spec")
        if pod is None:
            continue
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert layout == "hostPath" or not any("hostPath" in volume for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["livenessProbe"] and container["readinessProbe"] and container["resources"]["requests"]
    (user,) = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if "--uid" in line]
    assert "--uid 10001 " in user


@pytest.mark.parametrize("layout", LAYOUTS)
def test_service_and_engine_have_what_a_remote_tier_takes(layout: str) -> None:
    """Its credentials, its files, and the role of their pods' account; not so Valkey."""
    manifests = rendered(CHART, MODEL, *LAYOUTS[layout], *EVERYTHING)
    for name, container in containers(manifests).items():
        if name == "valkey":
            assert "envFrom" not in container and container["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
            continue
        urls = environment(container)["KVBLEND_REMOTE"].split()
        assert [url.partition(":")[0] for url in urls][-3:] == ["s3", "rediss", "mooncake"]
        assert container["envFrom"] == [{"secretRef": {"name": "aws"}}]
        assert environment(container)["AWS_REGION"] == "eu-central-1"
        assert {"name": "cache", "mountPath": "/etc/cache", "readOnly": True} in container["volumeMounts"]
    for pod in (each["spec"]["template"]["spec"] for each in manifests if "template" in each.get("spec", {})):
        own = {each["name"] for each in pod["containers"]} & {"service", "engine"}
        assert pod.get("serviceAccountName") == ("passages" if own else None)
        assert ({"name": "cache", "secret": {"secretName": "cache"}} in pod["volumes"]) == bool(own)


def test_only_the_service_reaches_engines_and_valkey() -> None:
    policies = {
        each["metadata"]["name"]: each["spec"]
        for each in kinds(rendered(CHART, MODEL, *LAYOUTS["remote"]), "NetworkPolicy")
    }
    assert set(policies) == {"rag-service", "rag-engine", "rag-valkey"}
    reach = {
        name: {
            peer["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/component", "any")
            for rule in spec["ingress"]
            for peer in rule["from"]
        }
        for name, spec in policies.items()
    }
    assert reach == {"rag-service": {"any"}, "rag-engine": {"service"}, "rag-valkey": {"service", "engine"}}


@pytest.mark.parametrize(
    ("control", "ports"),
    [
        (EXTERNAL["control"], [5600]),
        ("tcp://a:5600,tcp://b:5600", [5600]),
        ("tcp://a:5600,tcp://b:5601", [5600, 5601]),
    ],
)
def test_engines_that_something_else_runs(tmp_path: Path, control: str, ports: list[int]) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"externalEngines": [{**EXTERNAL, "control": control}]}))
    manifests = rendered(CHART, MODEL, *LAYOUTS["remote"], f"--values={values}")
    for manifest in manifests:
        validate(manifest)
    own = containers(manifests)
    assert set(own) == {"service", "valkey"} and not kinds(manifests, "StatefulSet")
    assert f"--control={control}" in own["service"]["args"]
    (policy,) = [each for each in kinds(manifests, "NetworkPolicy") if each["metadata"]["name"] == "rag-control-0"]
    assert policy["spec"]["podSelector"] == {"matchLabels": EXTERNAL["podSelector"]}
    anybody, service = policy["spec"]["ingress"]
    assert anybody == {"ports": [{"port": 8000}]} and service["from"]
    assert service["ports"] == [{"port": port} for port in ports]
