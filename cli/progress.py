"""Progress bars of the commands, on standard error."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

__all__ = ["count_progress", "status_progress"]


def count_progress(console: Console) -> Progress:
    """A bar that counts things."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def status_progress(console: Console) -> Progress:
    """A spinner beside what is happening now; for steps whose end is not known."""
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), console=console
    )
