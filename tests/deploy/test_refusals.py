"""Values with which deploy/chart cannot work: each is refused in a sentence that names it."""

import pytest

from kvblend.cli.engine import engine_command
from kvblend.cli.pod_size import VLLM_GIB
from tests.deploy.tools import CHART, MODEL, containers, environment, helm, rendered


@pytest.mark.parametrize(
    "values, sentence",
    [
        ("tiers.cpuGiB=8", "tiers.shmGiB is to be 9 or more"),
        ("tiers.cpuGiB=0,tiers.diskGiB=0", "a store needs one tier"),
        ("tiers.diskGiB=100", "home.storageGiB is to be 104 or more"),
        ("model=", "model is empty"),
        ("model=demo", "name a Hugging Face model"),
        ("engine.replicas=2", "take layout remote"),
        ("layout=hostPath", "nodeSelector has no kubernetes.io/hostname"),
        ("layout=hostPath,nodeSelector.pool=a", "nodeSelector has no kubernetes.io/hostname"),
        ("layout=remote", "there is no remote tier"),
        ("layout=remote,valkey.enabled=true,networkPolicy.enabled=false", "control address is on TCP"),
        ("layout=remote,valkey.enabled=true,tiers.cpuGiB=0", "1 GiB or more"),
        ("valkey.enabled=true,networkPolicy.enabled=false", "set one of them"),
        ("podMonitor.enabled=true,secrets.keys.name=a,secrets.keys.key=b", "Prometheus needs secrets.apiKey"),
        ("engine.args={-tp=2}", "engine.args has -tp, which the chart sets itself: set engine.gpus"),
        ("service.args={--home=/tmp}", "service.args has --home, which is not the service's to take here"),
        ("service.args={--,--max-num-seqs=4}", "arguments of vLLM are engine.args"),
        ("podMonitor.alerts=true", "podMonitor.enabled is to be true"),
        ("podMonitor.enabled=true", "networkPolicy.monitoring is to name Prometheus's pods"),
        ("service.port=8001", "service.port and engine.port are both 8001"),
        (
            "layout=remote,valkey.enabled=true,engine.controlPort=8001",
            "engine.controlPort and engine.port are both 8001",
        ),
        ("engine.kvCacheGiB=10", "engine.memoryGiB is to be 17 or more"),
        ("engine.gpus=1", "engine.gpus is 1 and image.tag cpu"),
        ("engine.gpus=1,image.tag=1.2-cpu", "engine.gpus is 1 and image.tag 1.2-cpu"),
        ("image.tag=cuda", "engine.gpus is to be 1 or more"),
        ("tiers.remote={s3://passages}", "name in envFrom a Secret with AWS_ACCESS_KEY_ID"),
        (
            "tiers.remote={s3://passages},extraEnv[0].name=HTTPS_PROXY",
            "name in envFrom a Secret with AWS_ACCESS_KEY_ID",
        ),
        ("tiers.remote={rediss://a:1/0?ssl_ca_certs=/a/ca.crt}", "the file /a/ca.crt, which no mountPath"),
        (
            "tiers.remote={rediss://a:1/0?ssl_certfile=/a/x&ssl_keyfile=/ab/y},extraVolumeMounts[0].name=a,"
            "extraVolumeMounts[0].mountPath=/a",
            "the file /ab/y, which no mountPath",
        ),
        ("tiers.remote={mooncake://a:1?segment=1073741824}", "leave segment out"),
        ("tiers.remote={nixl://a:1}", "peers list each other's addresses"),
        ("extraEnv[0].name=KVBLEND_CONTROL", "extraEnv names KVBLEND_CONTROL"),
        (
            "externalEngines[0].url=http://a:1,externalEngines[0].control=tcp://a:2,externalEngines[0].port=1,"
            "externalEngines[0].podSelector.a=b",
            "layout is to be remote",
        ),
    ],
)
def test_values_that_cannot_work_are_refused_in_a_sentence(values: str, sentence: str) -> None:
    refused = helm("template", "rag", CHART, MODEL, f"--set={values}")
    assert refused.returncode != 0 and sentence in refused.stderr


@pytest.mark.parametrize(
    "values",
    [
        "layout=remote,valkey.enabled=true,service.port=8001",
        "layout=pod,engine.controlPort=8001",
        "engine.kvCacheGiB=9",
        "engine.gpus=1,image.tag=cuda,engine.kvCacheGiB=10",
        "image.tag=mycpus,engine.gpus=1",
        "podMonitor.enabled=true,networkPolicy.enabled=false",
        "tiers.remote={mooncake://a:1?segment=0}",
        "tiers.remote={s3://passages},serviceAccountName=passages",
    ],
)
def test_values_beside_those_are_taken(values: str) -> None:
    assert rendered(CHART, MODEL, f"--set={values}")


def test_the_least_memory_is_what_kv_size_reckons_of_a_small_model() -> None:
    weights_gib = 1
    refused = helm(
        "template", "rag", CHART, MODEL, f"--set=engine.memoryGiB={weights_gib + VLLM_GIB},engine.kvCacheGiB=1"
    )
    assert f"engine.memoryGiB is to be {weights_gib + 1 + VLLM_GIB} or more" in refused.stderr
    assert rendered(CHART, MODEL, f"--set=engine.memoryGiB={weights_gib + 1 + VLLM_GIB},engine.kvCacheGiB=1")


def test_a_variable_that_the_chart_sets_itself_is_refused() -> None:
    """Two of one name are an error of Kubernetes' server-side apply."""
    told = [f"--set=secrets.{name}.name=s,secrets.{name}.key=k" for name in ("huggingFaceToken", "engineApiKey")]
    told += ["--set=tracing.endpoint=http://collector:4318"]
    names = {name for each in containers(rendered(CHART, MODEL, *told)).values() for name in environment(each)}
    assert {"HF_TOKEN", "OMP_NUM_THREADS", "OTEL_SERVICE_NAME", "VLLM_API_KEY", "KVBLEND_CPU_BYTES"} <= names
    for name in names:
        assert f"extraEnv names {name}" in refusal(f"extraEnv[0].name={name}")
    assert refusal("extraEnv[0].name=KVBLEND_EMBEDDING_API_KEY,extraEnv[1].name=OTEL_TRACES_SAMPLER") == ""


@pytest.mark.parametrize("container", ["service", "engine"])
def test_an_argument_that_the_chart_sets_itself_is_refused(container: str) -> None:
    """In either of a command line's two forms, and of vLLM's options with underscores too; no other is."""
    gpus = ("--set=engine.gpus=2,image.tag=cuda,tracing.endpoint=http://collector:4318",)
    told = {argument.partition("=")[0] for argument in containers(rendered(CHART, MODEL, *gpus))[container]["args"]}
    switches = {"--enable-prompt-tokens-details", "--enable-per-request-metrics"}
    options = {option for option in told - switches if option.startswith("--")}
    assert {"--host", "--port"} < options
    for option in options:
        for form in (f"{option}=x", option):
            assert f"{container}.args has {option}, which" in refusal(f"{container}.args[0]={form}")
    if container == "engine":
        assert "engine.args has --kv-transfer-config, which" in refusal("engine.args[0]=--kv_transfer_config")
        assert options <= {part for part in engine_command("m", port=1, tensor_parallel_size=2)} | {
            "--otlp-traces-endpoint"
        }
    assert refusal(f"{container}.args[0]=--max-num-seqs=4") == ""


def refusal(values: str) -> str:
    return helm("template", "rag", CHART, MODEL, f"--set={values}").stderr
