"""What `make gpu` runs: every kernel checked on this GPU and timed, then whole blends beside full prefill.

Writes benchmarks/results/kernels_gpu.csv and blend_gpu.csv. Needs torch, triton and transformers; what the connector
does from files needs the store's xxhash and pydantic too, and is left out where they are not there:
PYTHONPATH=src python benchmarks/gpu/run.py [kernels | blends]
"""

import csv
import gc
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch

from kvblend.blend.benchmark import BlendResult, blend_results, shapes_for
from kvblend.triton_kernels.benchmark import KernelResult, kernel_results

Result = TypeVar("Result")
ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LAST_BEGIN_S = 300
"""No model is begun later than this after the start: the whole must end well inside nine minutes."""


def main() -> int:
    if not torch.cuda.is_available():
        sys.exit("no NVIDIA GPU that torch can use; the kernels' tests need none: make test")
    begun, device, wanted = time.monotonic(), torch.device("cuda", torch.cuda.current_device()), sys.argv[1:]
    failures = 0
    if "blends" not in wanted:
        (RESULTS / "kernels_gpu.csv").unlink(missing_ok=True)
        failures += not write(RESULTS / "kernels_gpu.csv", kernel_results(device), kernel_row)
        print(f"kernels: {time.monotonic() - begun:.0f} s", flush=True)
    if "kernels" in wanted:
        return failures
    (RESULTS / "blend_gpu.csv").unlink(missing_ok=True)
    for shape in shapes_for(device):
        gc.collect()
        torch.cuda.empty_cache()
        if time.monotonic() - begun > LAST_BEGIN_S:
            print(f"{shape.name} is not measured: {LAST_BEGIN_S} s have passed", flush=True)
            failures += 1
            continue
        failures += not write(RESULTS / "blend_gpu.csv", blend_results(shape, device), blend_row)
        print(f"{shape.name}: {time.monotonic() - begun:.0f} s since the start", flush=True)
    return failures


def machine() -> dict[str, str]:
    import transformers
    import triton

    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "transformers": transformers.__version__,
        "cuda": torch.version.cuda or "",
        "commit": git.stdout.strip(),
    }


def write(target: Path, results: Iterable[Result], as_row: Callable[[Result], dict[str, object]]) -> bool:
    """Append rows to a table as they come; False, with the trace printed, where measuring ended in an error."""
    print(f"writing {target.relative_to(ROOT)}", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("a", newline="") as file:
        try:
            for result in results:
                row = as_row(result) | machine()
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)
                file.flush()
        except Exception:
            traceback.print_exc()
            return False
    return True


def kernel_row(result: KernelResult) -> dict[str, object]:
    share = "" if result.fraction_of_floor is None else f"{result.fraction_of_floor:.2f} of the floor"
    print(f"{result.kernel:20} {result.shape:70} {result.dtype:12} {result.ms_p50:8.3f} ms  {share}", flush=True)
    return {**vars(result), "fraction_of_floor": result.fraction_of_floor}


def blend_row(result: BlendResult) -> dict[str, object]:
    print(
        f"{result.model_shape:16} {result.context_tokens:6} tokens {result.tier:12} {result.launch:10} "
        f"full {result.full_ms_p50:8.1f} ms, blend {result.blend_ms_p50:7.1f} ms: {result.speedup:.2f} times",
        flush=True,
    )
    return {**vars(result), "speedup": result.speedup}


if __name__ == "__main__":
    sys.exit(main())
