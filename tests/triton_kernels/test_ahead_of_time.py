"""Every kernel compiles for A100, H100 and B200 without spilling, as the committed table says."""

import csv
from pathlib import Path

import pytest

from kvblend.triton_kernels.ahead_of_time import CAPABILITIES, resource_rows

TABLE = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "kernels_ptxas.csv"


@pytest.mark.parametrize(
    "capability", [pytest.param(each, marks=[] if each == 90 else pytest.mark.extended) for each in CAPABILITIES]
)
def test_resources(capability: int) -> None:
    """The table is made by `python -m kvblend.triton_kernels.ahead_of_time`; another Triton may count otherwise."""
    rows = list(resource_rows([capability]))
    assert {row["kernel"] for row in rows} == {
        "column_scores_kernel",
        "gather_quantize_kernel",
        "kv_deviation_kernel",
        "load_rerotate_kernel",
        "merge_parts_kernel",
        "probe_attention_kernel",
        "selective_attention_kernel",
        "write_kv_kernel",
    }
    assert [row for row in rows if row["spilled_bytes"] != "0"] == []
    with TABLE.open() as file:
        committed = [row for row in csv.DictReader(file) if row["architecture"] == f"sm_{capability}"]
    if {row["triton"] for row in committed} == {rows[0]["triton"]}:
        assert rows == committed
