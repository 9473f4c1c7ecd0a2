"""A question before something is deleted."""

from typing import Annotated

import typer

__all__ = ["Yes", "confirm"]

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def confirm(question: str, yes: bool) -> None:
    """Go on where `yes` holds or the user says so. Raises typer.Abort otherwise, also where there is nobody to ask."""
    if not yes:
        typer.confirm(question, abort=True, err=True)
