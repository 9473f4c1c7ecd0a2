"""What `eval/bench/store_codecs.py` says of each codec, on a tiny model's KV."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from kvblend.eval.bench.store_codecs import CODECS, codec_rows


def test_rows(tiny_model_path: Callable[[str], Path]) -> None:
    """Raw changes nothing; every other codec takes fewer bytes and errs, the finer ones less."""
    quiet = Console(quiet=True)
    rows = list(
        codec_rows(
            str(tiny_model_path("llama3rope")),
            None,
            num_questions=2,
            recompute_ratio=0.15,
            dtype="float32",
            console=quiet,
            num_passages=2,
            passage_tokens=60,
        )
    )
    by_codec = {row["codec"]: row for row in rows}
    assert tuple(by_codec) == CODECS
    raw = by_codec.pop("raw")
    assert raw["bytes_ratio"] == 1.0 and raw["key_error"] == raw["kl_added"] == raw["kl_added_stderr"] == 0.0
    for row in by_codec.values():
        assert 0 < row["bytes_ratio"] < 1 and row["key_error"] > 0 and row["value_error"] > 0
        assert row["encode_gb_per_s"] > 0 and row["decode_gb_per_s"] > 0
        assert row["kl"] != raw["kl"] and abs(row["kl_added"] - (row["kl"] - raw["kl"])) < 1e-9
    assert by_codec["int8"]["key_error"] < by_codec["entropy"]["key_error"] < by_codec["int4"]["key_error"]
