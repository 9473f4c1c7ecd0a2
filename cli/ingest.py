"""`kvblend ingest`: put files and folders into a collection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from kvblend.cli.connection import URL, APIKey, CollectionOption, connect
from kvblend.cli.json_output import AsJSON, print_json
from kvblend.cli.progress import count_progress
from kvblend.core.errors import InvalidRequestError, KVBlendError, NotFoundError
from kvblend.core.media_type import guess_media_type

if TYPE_CHECKING:
    from kvblend.core.rest import IngestJob
    from kvblend.sdk import Client
    from kvblend.sdk.waiting import JobProgress

__all__ = ["ingest"]

BATCH_FILES = 32
BATCH_BYTES = 64 << 20


def ingest(
    paths: Annotated[list[Path], typer.Argument(exists=True, help="Files, or folders to search for them.")],
    collection: CollectionOption = "default",
    passage_tokens: Annotated[int, typer.Option(min=32, max=2048, help="For a new collection.")] = 256,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Else only begin, and print the jobs for `kvblend jobs show`.")
    ] = True,
    url: URL = None,
    api_key: APIKey = None,
    as_json: AsJSON = False,
) -> None:
    """Put txt, md, html, pdf, docx, pptx, xlsx and csv files into a collection.

    The collection is made where it is not there. A file's name, or its path within the folder given, is its document's
    id; an unchanged one costs nothing, a file that cannot be read is named and passed over.
    """
    files = _named(paths)
    if not files:
        raise InvalidRequestError("no txt, md, html, pdf, docx, pptx, xlsx or csv file found")
    console = Console(stderr=True)
    with connect(url, api_key) as client, count_progress(console) as progress:
        try:
            client.get_collection(collection)
        except NotFoundError:
            client.create_collection(collection, passage_tokens=passage_tokens)
        sending = progress.add_task("files", total=len(files))
        encoding = progress.add_task("passages", total=0, visible=wait)
        done: list[IngestJob] = []
        failures: dict[str, str] = {}
        for batch in _batches(files):
            jobs: list[IngestJob] = []
            for part in [batch, *([name] for name in batch)]:  # all together, or one by one where one is refused
                try:
                    jobs.append(client.upload(collection, {name: files[name] for name in part}))
                except InvalidRequestError as error:
                    if len(part) == 1:
                        failures[part[0]] = error.message
                    continue
                if part is batch:
                    break
            progress.advance(sending, len(batch))
            if not wait:
                done += jobs
                continue
            for job in jobs:
                total_before = sum(each.passages_total for each in done)
                count_before = sum(each.passages_done for each in done)

                def show(state: IngestJob, total: int = total_before, count: int = count_before) -> None:
                    progress.update(encoding, total=total + state.passages_total, completed=count + state.passages_done)

                done.append(_wait(client, job, show))
                failures |= done[-1].failures
    for name, reason in failures.items():
        console.print(f"{name}: {reason}", style="red", markup=False, soft_wrap=True)
    if as_json:
        print_json({"jobs": [job.model_dump() for job in done], "failures": failures})
    elif wait:
        _summarize(console, done)
    else:
        for job in done:
            typer.echo(job.id)
    if failures:
        raise KVBlendError(f"{len(failures)} of {len(files)} files were not taken")


def _wait(client: Client, job: IngestJob, progress: JobProgress) -> IngestJob:
    """The job at its end; one that has failed for single documents has taken the others. Raises KVBlendError."""
    try:
        return client.wait(job, progress=progress)
    except KVBlendError:
        ended = client.get_job(job.collection, job.id)
        if not ended.failures:
            raise
        return ended


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """The files that paths stand for, by name. Raises InvalidRequestError for two files of one name."""
    files: dict[str, Path] = {}
    for path in paths:
        for name, file in _files(path):
            other = files.setdefault(name, file)
            if not other.samefile(file):
                raise InvalidRequestError(
                    f"{other} and {file} would both be the document {name!r}: ingest the folder that holds both, or "
                    "each into a collection of its own"
                )
    return files


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """The files that a path stands for, each with the name that its document gets."""
    if path.is_file():
        yield path.name, path
        return
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if file.is_file() and guess_media_type(file.name) and not any(part.startswith(".") for part in inside.parts):
            yield inside.as_posix(), file


def _batches(files: dict[str, Path]) -> Iterator[list[str]]:
    batch: list[str] = []
    num_bytes = 0
    for name, path in files.items():
        size = path.stat().st_size
        if batch and (len(batch) == BATCH_FILES or num_bytes + size > BATCH_BYTES):
            yield batch
            batch, num_bytes = [], 0
        batch.append(name)
        num_bytes += size
    if batch:
        yield batch


def _summarize(console: Console, jobs: Sequence[IngestJob]) -> None:
    documents = sum(len(job.document_ids) - len(job.failures) for job in jobs)
    encoded, reused = (sum(getattr(job, f"passages_{what}") for job in jobs) for what in ("encoded", "reused"))
    tokens, seconds = sum(job.tokens_encoded for job in jobs), sum(job.seconds for job in jobs)
    rate = f", {tokens / seconds:.0f} passage tokens/s" if tokens and seconds else ""
    console.print(
        f"{documents} documents: {encoded} passages encoded, {reused} had their KV already{rate}", highlight=False
    )
    for job in jobs:
        if job.error and not job.failures:
            console.print(job.error, style="yellow", markup=False)
