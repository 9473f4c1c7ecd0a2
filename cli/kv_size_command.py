"""The command `kvblend kv size`."""

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from kvblend.cli.json_output import AsJSON, print_json

__all__ = ["size"]


def size(
    model: Annotated[str, typer.Argument(help="A model folder or hub name; `demo` is the demo model.")] = "demo",
    passage_tokens: Annotated[int, typer.Option(min=1, help="Of a passage.")] = 256,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="Ranks, each with files of its own.")] = 1,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=0.001, help="Prefill's speed (`kvblend bench ingest`), for seconds a passage.")
    ] = None,
    as_json: AsJSON = False,
    passages: Annotated[int, typer.Option(min=1, help="How many are to be stored, for --helm.")] = 10_000,
    as_helm: Annotated[
        bool, typer.Option("--helm", help="Print values of the Helm chart: memory and volumes for so many passages.")
    ] = False,
) -> None:
    """What a model's passage KV takes by codec, and how many passages fit in the tiers that the settings give."""
    from kvblend.cli.kv_size import kv_size
    from kvblend.cli.models import resolve_model
    from kvblend.core.settings import STORED_SHARE, Settings

    settings, own = Settings(), kv_size(resolve_model(model))
    if as_helm:
        import yaml

        from kvblend.cli.pod_size import chart_values

        values = chart_values(
            model, own, num_passages=passages, passage_tokens=passage_tokens, codec=settings.codec,
            tensor_parallel=tensor_parallel,
        )  # fmt: skip
        sys.stdout.write(yaml.safe_dump(values, sort_keys=False))
        return
    tiers = {"gpu": settings.gpu_bytes, "cpu": settings.cpu_bytes, "disk": settings.disk_bytes}
    rows: list[dict[str, Any]] = [
        {
            "codec": codec,
            "passage_bytes": (taken := own.file_bytes(passage_tokens, ratio=ratio, tensor_parallel=tensor_parallel)),
            **{f"fit_{name}": budget // taken for name, budget in tiers.items() if budget},
        }
        for codec, ratio in STORED_SHARE.items()
    ]
    seconds = passage_tokens / tokens_per_second if tokens_per_second else None
    result = {
        "token_bytes": own.token_bytes,
        "passage_tokens": passage_tokens,
        "passage_prefill_tflops": own.prefill_flops(passage_tokens) / 1e12,
        "passage_seconds": seconds,
        "codecs": rows,
    }
    if as_json:
        print_json(result)
        return
    shown = [name for name, budget in tiers.items() if budget]
    table = Table("codec", "a passage", *(f"fit in {name} ({decimal(tiers[name])})" for name in shown))
    for row in rows:
        table.add_row(row["codec"], decimal(row["passage_bytes"]), *(f"{row[f'fit_{name}']:,}" for name in shown))
    console = Console()
    console.print(table)
    console.print(
        f"{own.token_bytes:,} bytes of KV a token; {result['passage_prefill_tflops']:.2f} TFLOPs to prefill a passage "
        f"of {passage_tokens} tokens" + (f", {seconds:.2f} s" if seconds else "")
    )
