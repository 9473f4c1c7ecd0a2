"""What `make gpu` runs: every kernel checked on this GPU, then timed; writes benchmarks/results/kernels_gpu.csv.

Needs torch and triton alone: PYTHONPATH=src python benchmarks/gpu/run.py
"""

import csv
import subprocess
import sys
from pathlib import Path

import torch

from kvblend.triton_kernels.benchmark import kernel_results

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("no NVIDIA GPU that torch can use; the kernels' tests need none: make test")
    import triton

    device = torch.device("cuda")
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    machine = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda or "",
        "commit": git.stdout.strip(),
    }
    target = ROOT / "benchmarks" / "results" / "kernels_gpu.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="") as file:
        writer = None
        for result in kernel_results(device):
            row = {**vars(result), "fraction_of_floor": result.fraction_of_floor, **machine}
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            share = "" if result.fraction_of_floor is None else f"{result.fraction_of_floor:.2f} of the floor"
            print(
                f"{result.kernel:20} {result.shape:70} {result.dtype:12} {result.ms_p50:8.3f} ms  {share}", flush=True
            )


if __name__ == "__main__":
    main()
