"""The command `kvblend bench retrieval-quality`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

from kvblend.cli.bench.table import rows_table
from kvblend.cli.json_output import AsJSON, print_json

__all__ = ["retrieval_quality"]


def retrieval_quality(
    files: Annotated[list[Path], typer.Argument(dir_okay=False, help="Question sets in SQuAD's or MuSiQue's shape.")],
    embedding_model: Annotated[
        str | None, typer.Option(help="A sentence-transformers folder or name; all-MiniLM-L6-v2 where not given.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Recall and MRR of vector, keyword and hybrid search, and of the reranker that KVBLEND_RERANKER names."""
    from transformers import AutoTokenizer

    from kvblend.api.retrieval_models import open_embedder, open_reranker
    from kvblend.cli.models import fetch_embedding_model
    from kvblend.core.settings import Settings
    from kvblend.eval.bench.retrieval_quality import retrieval_quality as bench
    from kvblend.eval.questions.retrieval_set import load_retrieval_set
    from kvblend.retriever import Retriever

    console, settings = Console(stderr=True), Settings()
    sets = [load_retrieval_set(path) for path in files]
    local = embedding_model or str(fetch_embedding_model())
    tokenizer = AutoTokenizer.from_pretrained(local)
    embedder, reranker = open_embedder(local, settings), open_reranker(settings)

    def opened(folder: Path) -> Retriever:
        return Retriever(folder, embedder=embedder, tokenizer=tokenizer, reranker=reranker)

    with TemporaryDirectory() as folder:
        result = bench(opened, Path(folder), sets, say=console.print)
    result["machine"]["embedding_model"] = Path(embedder.name).name
    if as_json:
        print_json(result)
        return
    rows = result["results"]
    Console().print(rows_table(rows, list(rows[0]), title=f"retrieval by {result['machine']['embedding_model']}"))
