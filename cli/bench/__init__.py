"""`kvblend bench`: one file a question."""

from kvblend.cli.bench.app import bench_app

__all__ = ["bench_app"]
