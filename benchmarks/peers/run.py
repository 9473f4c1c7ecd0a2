"""What `make bench-peers` runs: other projects' benchmarks against kvblend and against vLLM alone.

    PYTHONPATH=benchmarks/peers .venv/bin/python benchmarks/peers/run.py [--requests N] [--clients N] [--only TOOL ...]

Their packages are installed into `.cache/peers/venv`; one that cannot be installed is left out, and that is said. Every
tool sends both servers the same questions over passages of one pool, whose KV kvblend has stored, as after an ingest.
What a tool was given and what it found stays in `.cache/peers/runs`.
Writes benchmarks/results/peers.json, of which `make reference` makes a page.
"""

import argparse
import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from prompts import pool, questions
from servers import kvblend_service, outcomes, plain_vllm
from tools import TOOLS, Asked, Tool

from kvblend.cli.bench.served_dtype import served_machine
from kvblend.cli.models import resolve_model

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".cache" / "peers" / "venv"
RUNS = ROOT / ".cache" / "peers" / "runs"
RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
POOL = 48
LIMIT_S = 1800


def installed(wanted: Sequence[type[Tool]]) -> tuple[list[Tool], dict[str, str]]:
    """The tools that can be had, and why the others cannot, by name."""
    tools, missing = list[Tool](), dict[str, str]()
    python = ENVIRONMENT / "bin" / "python"
    for kind in wanted:
        if kind.comes_with_vllm:
            tools.append(kind(Path(sys.executable)))
            continue
        if not python.exists():
            venv.create(ENVIRONMENT, with_pip=True)
        torch = importlib.metadata.version("torch")  # this machine's build; theirs would be one for GPUs
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", f"torch=={torch}"]
        ended = subprocess.run([*pip, f"{kind.package}=={kind.wanted}"], capture_output=True, text=True, check=False)
        if ended.returncode:
            missing[kind.name] = ended.stderr.strip().splitlines()[-1]
            print(f"{kind.name} cannot be installed: {missing[kind.name]}", flush=True)
        else:
            tools.append(kind(python))
    return tools, missing


def row(tool: Tool, asked: Asked, folder: Path) -> dict[str, Any]:
    """What a tool found; where it failed, the end of what it said. What it read and wrote stays in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command, before = tool.command(asked, folder), outcomes(asked.url)
    shown = [*map(str, command)]
    told: dict[str, Any] = {
        "tool": tool.name,
        "version": tool.version,
        "documents": "in the body" if asked.bodies and tool.sends_bodies else "in the prompt",
        "command": shorter(shown, asked, folder),
        "folder": str(folder.relative_to(ROOT)),
    }
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    environment.pop("HF_HUB_OFFLINE", None)  # aiperf would look for a folder in the hub's cache
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    try:
        found = asdict(tool.found(folder))
    except (OSError, KeyError, ValueError):
        return {**told, "found": None, "said": (ended.stdout + ended.stderr)[-2000:]}
    return {**told, "found": found, "outcomes": dict(outcomes(asked.url) - before)}


def shorter(command: Sequence[str], asked: Asked, folder: Path) -> str:
    """The command as a page shows it, without this run's folders and ports."""
    words = (word.replace(str(folder) + "/", "").replace(str(folder), ".") for word in command[1:])
    words = (word.replace(asked.url, "$URL").replace(str(asked.tokenizer), "$MODEL") for word in words)
    return shlex.join([Path(command[0]).name, *words]).replace("'$URL'", "$URL").replace("'$MODEL'", "$MODEL")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run other projects' benchmarks against kvblend and vLLM.")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--documents", type=int, default=8, help="of each request, of about 200 tokens")
    parser.add_argument("--answer-tokens", type=int, default=16)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--only", nargs="*", choices=sorted(tool.package for tool in TOOLS))
    arguments = parser.parse_args()
    wanted = [tool for tool in TOOLS if not arguments.only or tool.package in arguments.only]
    tools, missing = installed(wanted)
    documents = pool(POOL)
    rows: list[dict[str, Any]] = []
    for subject in ("vLLM", "kvblend"):
        server = plain_vllm(arguments.model) if subject == "vLLM" else kvblend_service(arguments.model, documents)
        with server as url:
            for tool in tools:
                asked = Asked(
                    url,
                    httpx.get(f"{url}/v1/models", trust_env=False).json()["data"][0]["id"],
                    Path(resolve_model(arguments.model)),
                    questions(documents, arguments.requests, of_each=arguments.documents, seed=tool.package),
                    arguments.clients,
                    arguments.answer_tokens,
                    bodies=subject == "kvblend",
                )
                rows.append({"server": subject, **row(tool, asked, RUNS / f"{tool.package}-{subject.lower()}")})
                print(json.dumps(rows[-1]), flush=True)
    shape = {name: getattr(arguments, name) for name in ("requests", "clients", "documents", "answer_tokens", "model")}
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": served_machine(resolve_model(arguments.model), None),
        **shape,
        "missing": missing,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(row["found"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
