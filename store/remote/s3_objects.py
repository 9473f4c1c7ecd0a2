"""Objects in S3, or what speaks its protocol."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from kvblend.store.remote.objects import RemoteFullError, RemoteObjects
from kvblend.store.remote.s3_claims import S3Claims

__all__ = ["S3Objects"]

TIMEOUT_S = 10


class S3Objects(RemoteObjects):
    """An object is one under `prefix` of `bucket`, by its file name. It is put only where there is none.

    Credentials come from the environment, as the provider's own tools read them.
    """

    name = "s3"

    def __init__(self, bucket: str, prefix: str, *, endpoint: str | None, region: str | None) -> None:
        import obstore
        from obstore.store import S3Store

        self._obstore = obstore
        self.location = f"s3://{bucket}/{prefix}" + (f" at {endpoint}" if endpoint else "")
        options: dict[str, Any] = {"bucket": bucket}
        if prefix:
            options["prefix"] = prefix
        if region:
            options["region"] = region
        if endpoint:
            options["endpoint"] = endpoint
        with self._errors():
            self._store: Any = S3Store(
                **options,
                client_options={
                    "timeout": timedelta(seconds=TIMEOUT_S),
                    "connect_timeout": timedelta(seconds=1),
                    "allow_http": bool(endpoint and endpoint.startswith("http://")),
                },
                retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=TIMEOUT_S)},
            )

        self._claims = S3Claims(obstore, self._store)

    def exist(self, names: Collection[str]) -> set[str]:
        return {name for name in names if self._is_there(name)}

    def get(self, name: str) -> Any:
        with self._errors():
            try:
                return self._obstore.get(self._store, name).bytes()
            except FileNotFoundError:
                return None

    def put(self, name: str, data: memoryview) -> bool:
        with self._errors():
            try:
                self._obstore.put(self._store, name, data, mode="create")
            except self._obstore.exceptions.AlreadyExistsError:
                return False
        return True

    def delete(self, names: Collection[str]) -> int:
        there = self.exist(names)
        if there:
            with self._errors():
                self._obstore.delete(self._store, sorted(there))
        return len(there)

    def names_in(self, folder: str) -> set[str]:
        with self._errors():
            pages = self._obstore.list(self._store, f"{folder}/")
            return {item["path"] for page in pages for item in page}

    def claim(self, name: str, seconds: float) -> Callable[[], object] | None:
        with self._errors():
            own = self._claims.take(name, seconds)
        return own and partial(self._give_back, own)

    def close(self) -> None:
        """Connections are the library's own."""

    def _give_back(self, own: Callable[[], object]) -> None:
        with self._errors():
            own()

    def _is_there(self, name: str) -> bool:
        with self._errors():
            try:
                self._obstore.head(self._store, name)
            except FileNotFoundError:
                return False
        return True

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._obstore.exceptions.BaseError as error:
            text = str(error)
            if "QuotaExceeded" in text or "EntityTooLarge" in text:
                raise RemoteFullError(text) from error
            raise OSError(f"{type(error).__name__}: {text}") from error
