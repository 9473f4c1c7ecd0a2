"""How passages are retrieved, where a request says so."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from kvblend.core.choices import SearchMode
from kvblend.core.rest.filters import MetadataFilter
from kvblend.core.rest.request import Request, TopK

__all__ = ["MinScore", "Neighbors", "RetrievalChoices", "SearchMode"]

MinScore = Annotated[float, Field(allow_inf_nan=False)]
Neighbors = Annotated[int, Field(ge=0, le=8)]
MAX_SOURCES = 256


class RetrievalChoices(Request):
    """What to retrieve from a collection, where a request says so.

    `mode`: by `vector`, by `keyword` (BM25) or, fused by their ranks, by both: `hybrid`; by default the collection's.
    `filter`: of documents by their metadata, before anything is ranked. `min_score`: of a source's `score`, which is
    the cosine similarity to the question in the modes hybrid and vector and BM25 in keyword; what has less is left out.
    `neighbors`: how many passages before and after each one found, in its document, come along.
    `rerank`: whether a cross-encoder, where the service has one, puts the best `rerank_candidates` in its own order;
    the scores are then its own.
    """

    top_k: TopK = 8
    """How many passages are retrieved."""
    mode: SearchMode | None = None
    filter: MetadataFilter | None = None
    min_score: MinScore | None = None
    neighbors: Neighbors = 0
    rerank: bool = False
    rerank_candidates: Annotated[int, Field(ge=1, le=256)] = 32

    @model_validator(mode="after")
    def _check_number(self) -> Self:
        if self.top_k * (2 * self.neighbors + 1) > MAX_SOURCES:
            raise ValueError(
                f"top_k {self.top_k} with {self.neighbors} neighbors on either side could be more than {MAX_SOURCES} "
                "passages"
            )
        return self
