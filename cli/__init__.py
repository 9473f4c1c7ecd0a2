"""The kvblend command."""

__all__ = ["main"]


def main() -> None:
    """Run the command line; what kvblend raises on purpose ends it with one sentence and status 1."""
    from kvblend.cli.app import run

    run()
