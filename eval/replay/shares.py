"""What a replay served, over time and in its steady state."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from kvblend.api.prompt.neighbours import Standing
from kvblend.eval.replay.replay import ReplaySettings, Served

__all__ = ["Ratios", "replay_rows", "setting_fields", "share_fields", "steady_part"]

STEADY_AFTER = 1000
"""Requests."""
WINDOW = 500
STANDINGS: tuple[Standing, ...] = get_args(Standing)


@dataclass(frozen=True)
class Ratios:
    """Shares of tokens to recompute: of passages that are reused where they do not fit, and of those that fit."""

    reused: float = 0.15
    fits: float = 0.0

    def of(self, standing: Standing) -> float:
        """Of a passage that stands so; one that is missing is computed whole."""
        return {"reused": self.reused, "fits": self.fits, "missing": 1.0}.get(standing, 0.0)

    def num_repaired(self, served: Served) -> float:
        """Tokens of a request to repair, the missing ones aside."""
        return sum(self.of(standing) * served.num_tokens(standing) for standing in ("fits", "reused"))


def setting_fields(settings: ReplaySettings) -> dict[str, Any]:
    """What tells a row from another."""
    return {
        "capacity": settings.capacity,
        "order": "free" if settings.free else settings.order,
        "variants_share": settings.variants_share,
        "eviction": settings.eviction,
    }


def steady_part(served: Sequence[Served]) -> Sequence[Served]:
    """The requests behind the first thousand, or behind the first third of a shorter trace."""
    return served[min(STEADY_AFTER, len(served) // 3) :]


def replay_rows(settings: ReplaySettings, served: Sequence[Served], *, ratios: Ratios) -> list[dict[str, Any]]:
    """A row of every 500 requests, and one of the steady state."""
    parts = [(False, first, served[first : first + WINDOW]) for first in range(0, len(served), WINDOW)]
    steady = steady_part(served)
    return [
        {
            **setting_fields(settings),
            "steady": is_steady,
            "first_request": first,
            "num_requests": len(part),
            **share_fields(part, ratios=ratios),
        }
        for is_steady, first, part in [*parts, (True, len(served) - len(steady), steady)]
    ]


def share_fields(served: Sequence[Served], *, ratios: Ratios) -> dict[str, float]:
    """Shares of passages' tokens by standing, and what is computed of them.

    `fitting_passages`: of the passages behind the first, those that fit or are exact. `recompute_ratio`: the mean over
    requests of the share of tokens repaired; `computed_ratio`: of these and the missing ones. `encodes`: of variants, a
    request; `variants_ratio`: their share of the store at last.
    """
    tokens = {standing: sum(one.num_tokens(standing) for one in served) for standing in STANDINGS}
    total = sum(tokens.values())
    behind = [standing for one in served for standing in one.standings[1:]]
    repaired = [ratios.num_repaired(one) / one.num_tokens() for one in served]
    missing = [one.num_tokens("missing") / one.num_tokens() for one in served]
    return {
        **{str(standing): tokens[standing] / total for standing in STANDINGS},
        "fitting_passages": sum(standing in ("exact", "fits") for standing in behind) / max(1, len(behind)),
        "recompute_ratio": sum(repaired) / len(served),
        "computed_ratio": (sum(repaired) + sum(missing)) / len(served),
        "encodes": sum(one.num_encodes for one in served) / len(served),
        "variants_ratio": served[-1].variants_ratio,
    }
