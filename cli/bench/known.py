"""Refuse names that a benchmark does not know."""

from collections.abc import Iterable

import typer

__all__ = ["require_known"]


def require_known(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises typer.BadParameter that names what of `given` is not among `known`."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: not among {', '.join(known)}", param_hint=option)
