"""Which passage stands behind which: the order of a prompt's passages, and the pairs that are worth a KV of theirs."""

from kvblend.api.prompt.neighbours.order import Neighbours, OrderName, PlannedOrder, Ranked, Standing, plan_order
from kvblend.api.prompt.neighbours.pair_counts import PairCounts, PassageVariant
from kvblend.api.prompt.neighbours.pair_ledger import PairLedger
from kvblend.api.prompt.neighbours.stored_neighbours import candidate_variants, stored_neighbours
from kvblend.api.prompt.neighbours.variant_ledger import StoredVariant, VariantLedger

__all__ = [
    "Neighbours",
    "OrderName",
    "PairCounts",
    "PairLedger",
    "PassageVariant",
    "PlannedOrder",
    "Ranked",
    "Standing",
    "StoredVariant",
    "VariantLedger",
    "candidate_variants",
    "plan_order",
    "stored_neighbours",
]
