"""A blend's steps as ratios to their floors, and the rows that hold them."""

from io import StringIO

import pytest
import torch
from rich.console import Console
from rich.text import Text

from kvblend.cli.bench.ttft_table import ttft_table
from kvblend.core.report import BlendReport, StepTimes
from kvblend.eval.bench.efficiency import TARGETS, Floor, step_efficiencies
from kvblend.eval.bench.memcpy import memcpy_ms
from kvblend.eval.bench.ttft_row import BlendTiming, Timing, blend_fields, no_blend_fields, ttft_fields

FLOOR = Floor(prefill_token=0.5, memcpy=4.0, question=20.0)


def blend_timing(ttft_ms: float, *, repair: float = 150.0, probe: float = 30.0, forward: float = 20.0) -> BlendTiming:
    steps = StepTimes(load=8.0, probe=probe, repair=repair)
    report = BlendReport(outcome="blended", reused_tokens=1000, recomputed_tokens=200, steps_ms=steps)
    return BlendTiming(ttft_ms, report, forward)


def test_ratios() -> None:
    """Each step over its floor: 0.75 ms a repaired token over 0.5, 8 ms over 4, 30 over 20."""
    ratios = step_efficiencies({"load": 8.0, "probe": 30.0, "repair": 150.0}, FLOOR, repaired_tokens=200)
    assert ratios == {"repair_efficiency": 1.5, "load_efficiency": 2.0, "probe_efficiency": 1.5}
    assert ratios.keys() == TARGETS.keys()


def test_nothing_done_has_no_ratio() -> None:
    """Full reuse neither probes nor repairs: that is not an efficiency of 0."""
    ratios = step_efficiencies({"load": 8.0, "probe": 0.0, "repair": 0.0}, FLOOR, repaired_tokens=0)
    assert ratios == {"repair_efficiency": None, "load_efficiency": 2.0, "probe_efficiency": None}
    empty = step_efficiencies({"load": 0.1, "probe": 0.0, "repair": 1.0}, Floor(0.5, 0.0, 20.0), repaired_tokens=0)
    assert set(empty.values()) == {None}


def test_rows_are_of_medians() -> None:
    """One slow repeat moves no ratio; steps and what they leave are medians each."""
    timings = [blend_timing(250.0), blend_timing(260.0), blend_timing(900.0, repair=600.0, probe=90.0, forward=80.0)]
    row = blend_fields(timings, prefill_token_ms=0.5, memcpy_ms=4.0)
    assert row["steps_ms"] == {"load": 8.0, "probe": 30.0, "repair": 150.0, "question": 72.0}
    assert (row["repair_efficiency"], row["load_efficiency"], row["probe_efficiency"]) == (1.5, 2.0, 1.5)
    assert (row["reused_tokens"], row["recomputed_tokens"]) == (1000, 200)
    assert row.keys() == no_blend_fields().keys() and set(no_blend_fields().values()) == {None}


def test_quantiles() -> None:
    assert ttft_fields([Timing(7.0)]) == {"ttft_ms_p50": 7.0, "ttft_ms_p20": 7.0, "ttft_ms_p80": 7.0}
    fields = ttft_fields([Timing(float(ms)) for ms in (5, 1, 4, 2, 3, 6)])
    assert fields == {"ttft_ms_p50": 3.5, "ttft_ms_p20": 2.0, "ttft_ms_p80": 5.0}


@pytest.mark.timed
def test_memcpy_is_by_the_byte() -> None:
    """Twice the bytes take about twice as long, as no cache holds them; a cached copy would be many times faster."""
    one, two = (memcpy_ms(num_bytes, torch.device("cpu")) for num_bytes in (32 << 20, 64 << 20))
    assert two == pytest.approx(2 * one, rel=0.5)


def test_table() -> None:
    """Every mode is a row of 80 columns at most; a step above its target is red, one within it green."""
    blend = blend_fields([blend_timing(250.0)], prefill_token_ms=0.7, memcpy_ms=1.0)
    names = ("context_tokens", "mode", "recompute_ratio")
    full = dict(zip(names, (6000, "full_prefill", None), strict=True)) | ttft_fields([Timing(500.0)])
    rows = [
        full | no_blend_fields(),
        dict(zip(names, (6000, "blend", 0.15), strict=True)) | ttft_fields([Timing(250.0)]) | blend,
    ]
    machine = {"dtype": "bfloat16", "threads": 2, "cpu": "a CPU"}
    verified = {"recompute_ratio": 1.0, "kl": 0.002, "tolerance": 0.01}
    console = Console(width=80, file=StringIO(), force_terminal=True, color_system="standard")
    console.print(ttft_table({"model": "m", "machine": machine, "verified": verified, "results": rows}))
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert "verified: a blend at ratio 1 is full prefill, KL 0.002 of 0.01" in text
    plain = Text.from_ansi(text).plain
    assert "6000 full prefill  500     1.0" in plain
    assert "6000 blend 0.15    250     2.0 8 (8.00) 30 (1.50) 150 (1.07)" in plain
    assert "\x1b[31m8.00" in text and "\x1b[32m1.50" in text and "\x1b[32m1.07" in text
