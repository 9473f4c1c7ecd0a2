"""A server of embeddings or rerank scores, asked over HTTP."""

from collections.abc import Mapping
from typing import Any

import httpx
from pydantic import SecretStr
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from kvblend.core.errors import EngineUnavailableError, KVBlendError

__all__ = ["RemoteModel"]

MAX_TRIES = 4
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 2.0
TIMEOUT = httpx.Timeout(60.0, connect=5.0)
MAX_TOLD = 300


class RemoteModel:
    """Posts JSON to one URL, from many threads at once. What fails for now (no connection, 429, 5xx) is tried again.

    `what` says in errors what the server is for.
    """

    def __init__(self, url: str, *, what: str, api_key: SecretStr | None) -> None:
        self.url, self._what = url, what
        headers = {"Authorization": f"Bearer {api_key.get_secret_value()}"} if api_key else {}
        self._http = httpx.Client(headers=headers, timeout=TIMEOUT, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def post(self, body: Mapping[str, Any]) -> Any:
        """The server's answer.

        Raises:
            EngineUnavailableError: it does not answer, or says that it cannot now, as often as it was asked.
            KVBlendError: it refuses the request, or its answer is no JSON.
        """
        tries = Retrying(
            stop=stop_after_attempt(MAX_TRIES),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            retry=retry_if_exception_type(EngineUnavailableError),
            reraise=True,
        )
        return tries(self._post, body)

    def broken(self, why: str) -> KVBlendError:
        """The error of an answer that is not what it should be."""
        return KVBlendError(f"the {self._what} server at {self.url} answered {why}")

    def _post(self, body: Mapping[str, Any]) -> Any:
        try:
            response = self._http.post(self.url, json=body)
        except httpx.HTTPError as error:
            raise EngineUnavailableError(
                f"the {self._what} server at {self.url} does not answer: {error or type(error).__name__}"
            ) from error
        if response.status_code == 429 or response.status_code >= 500:
            raise EngineUnavailableError(f"the {self._what} server at {self.url} answers {response.status_code}")
        if not response.is_success:
            raise self.broken(f"{response.status_code}: {response.text[:MAX_TOLD]}")
        try:
            return response.json()
        except ValueError as error:
            raise self.broken("what is no JSON") from error
