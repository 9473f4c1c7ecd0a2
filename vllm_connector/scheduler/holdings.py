"""What a service is told of this engine before it chooses one: what it has near of a prompt, and how busy it is."""

from collections.abc import Sequence
from concurrent.futures import Future

from kvblend.core.control import Held, KVName
from kvblend.vllm_connector.scheduler.lookups import Lookups

__all__ = ["Holdings"]


class Holdings:
    """Counts vLLM's requests, those without orders too, and looks passages up. Asked from any thread."""

    def __init__(self, lookups: Lookups) -> None:
        self._lookups = lookups
        self._unfinished: set[str] = set()

    def begin(self, request_id: str) -> None:
        self._unfinished.add(request_id)

    def end(self, request_id: str) -> None:
        self._unfinished.discard(request_id)

    def look(self, names: Sequence[KVName]) -> Future[Held]:
        """Begin to find out what lies near of passages, by encode context and passage id. Does not wait."""
        told, found = Future[Held](), self._lookups.held(names)

        def tell(found: Future[list[bool]]) -> None:
            if found.cancelled():
                told.cancel()
            elif (error := found.exception()) is not None:
                told.set_exception(error)
            else:
                told.set_result(Held(passages=found.result(), num_requests=len(self._unfinished)))

        found.add_done_callback(tell)
        return told
