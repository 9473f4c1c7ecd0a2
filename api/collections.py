"""Collections as the service uses them: the catalog's record with its preamble and encode context in tokens."""

import secrets
from collections.abc import Collection
from dataclasses import dataclass

from kvblend.api.encode_context import EncodeContext, default_warm_context, make_encode_context
from kvblend.api.passage_kv import KVName
from kvblend.api.prompt import DEFAULT_PREAMBLE, PromptBuilder
from kvblend.core import rest
from kvblend.core.errors import ConflictError, InvalidRequestError, NotFoundError
from kvblend.core.rest import CollectionCreate, CollectionUpdate
from kvblend.retriever import Catalog, CollectionRecord, CollectionSettings

__all__ = ["Collections", "OpenCollection"]


SERVICE_ID = "service_id"


@dataclass(frozen=True)
class OpenCollection:
    """A collection whose tokens are those of the model that is served."""

    name: str
    preamble: str
    encode_context: EncodeContext
    owner: str | None = None
    """Whose the KV of its passages is, in a store that other services use too."""
    kv_quota_bytes: int | None = None
    kv_ttl_s: float | None = None


class Collections:
    """Creates and opens collections. Its methods read files: call them in a thread."""

    def __init__(self, catalog: Catalog, prompts: PromptBuilder, *, model: str, embedding_model: str) -> None:
        self._catalog = catalog
        self._prompts = prompts
        self._model = model
        self._embedding_model = embedding_model
        self.service_id = _service_id(catalog)
        """Of this catalog, in the names of owners: `<service id>/<collection>`."""
        self.default = OpenCollection(
            "", DEFAULT_PREAMBLE, self._encode_context(DEFAULT_PREAMBLE, default_warm_context())
        )
        """What passages get that a caller supplies without a collection."""

    def create(self, order: CollectionCreate, *, max_model_len: int | None) -> rest.Collection:
        """Create a collection. What its prompts and encode context begin with is kept in tokens, so that a template
        that says the date does not change it every day.

        Raises ConflictError where the name is taken, InvalidRequestError where no passage would fit the model.
        """
        preamble = DEFAULT_PREAMBLE if order.preamble is None else order.preamble
        warm_context = default_warm_context() if order.warm_context is None else order.warm_context
        context = self._encode_context(preamble, warm_context)
        num_tokens = len(context.token_ids) + order.passage_tokens + 1
        if max_model_len is not None and num_tokens > max_model_len:
            raise InvalidRequestError(
                f"preamble, warm context and a passage of {order.passage_tokens} tokens take {num_tokens} tokens; the "
                f"model takes {max_model_len}",
                param="passage_tokens",
            )
        settings = {
            "model": self._model,
            "tokenizer": self._prompts.fingerprint,
            "embedding_model": self._embedding_model,
            "preamble": preamble,
            "warm_context": warm_context,
            "encode_context": list(context.token_ids),
            "num_preamble": context.num_preamble,
            "kv_quota_bytes": order.kv_quota_bytes,
            "kv_ttl_s": order.kv_ttl_s,
        }
        record = self._catalog.create_collection(order.name, passage_tokens=order.passage_tokens, settings=settings)
        return _view(record)

    def update(self, name: str, update: CollectionUpdate) -> rest.Collection:
        """Set the limits that `update` names. Raises NotFoundError."""
        return _view(self._catalog.update_collection(name, update.model_dump(exclude_unset=True)))

    def view(self, name: str) -> rest.Collection:
        """A collection as it stands. Raises NotFoundError."""
        return _view(self._catalog.get_collection(name))

    def views(self) -> list[rest.Collection]:
        """All collections, by name."""
        return [_view(record) for record in self._catalog.list_collections()]

    def open(self, name: str) -> OpenCollection:
        """Open a collection. Raises NotFoundError, and ConflictError where its passages are another model's tokens."""
        record = self._catalog.collection_settings(name)
        if record.settings["tokenizer"] != self._prompts.fingerprint:
            raise ConflictError(
                f"collection {name!r} was made for the model {record.settings['model']!r}; {self._model!r}, which is "
                "served, has other tokens",
                param="collection",
            )
        return self._open(record)

    def all(self) -> list[OpenCollection]:
        """Every collection, of whatever model."""
        return [self._open(record) for record in self._catalog.list_settings()]

    def any(self, name: str) -> OpenCollection:
        """A collection of whatever model, to delete from it. Raises NotFoundError."""
        return self._open(self._catalog.collection_settings(name))

    def usable(self) -> list[OpenCollection]:
        """The collections whose passages are the served model's tokens."""
        records = self._catalog.list_settings()
        return [self._open(record) for record in records if record.settings["tokenizer"] == self._prompts.fingerprint]

    def unreferenced(self, names: Collection[KVName]) -> set[KVName]:
        """Those names of passage KV that no collection's passages have."""
        return set(names) - self._held(names)

    def document_names(self, name: str, document_id: str) -> set[KVName]:
        """The names of the KV of a document's passages; none where there is no such document."""
        context = self.any(name).encode_context.hash
        try:
            passages = self._catalog.document_passages(name, document_id)
        except NotFoundError:
            return set()
        return {(context, passage.passage_id) for passage in passages}

    def require_document(self, name: str, document_id: str) -> None:
        """Raise NotFoundError where there is no such collection or document."""
        self._catalog.get_document(name, document_id)

    def held_elsewhere(self, name: str, names: Collection[KVName]) -> set[KVName]:
        """Those names of passage KV that another collection's passages have, too."""
        return self._held(names, but=name)

    def names(self, name: str) -> set[KVName]:
        """The names of the KV of all passages of a collection. Raises NotFoundError."""
        found, after = set[KVName](), None
        while documents := self._catalog.list_documents(name, limit=100, after=after):
            for document in documents:
                found |= self.document_names(name, document.id)
            after = documents[-1].id
        return found

    def _held(self, names: Collection[KVName], *, but: str | None = None) -> set[KVName]:
        """Those names of passage KV that some collection's passages have, of any but one."""
        contexts = {own.name: own.encode_context.hash for own in self.all() if own.name != but}
        holders = self._catalog.collections_holding(sorted({passage_id for _, passage_id in names}))
        return {
            (context, passage_id)
            for context, passage_id in names
            if any(contexts.get(holder) == context for holder in holders.get(passage_id, ()))
        }

    def _open(self, record: CollectionSettings) -> OpenCollection:
        settings = record.settings
        context = EncodeContext(tuple(settings["encode_context"]), settings["num_preamble"])
        return OpenCollection(
            record.name,
            settings["preamble"],
            context,
            f"{self.service_id}/{record.name}",
            settings.get("kv_quota_bytes"),
            settings.get("kv_ttl_s"),
        )

    def _encode_context(self, preamble: str, warm_context: str) -> EncodeContext:
        warm_ids = self._prompts.passage_ids(warm_context) if warm_context.strip() else ()
        return make_encode_context(self._prompts.preamble_ids(preamble), warm_ids)


def _service_id(catalog: Catalog) -> str:
    service_id = catalog.get_value(SERVICE_ID)
    if service_id is None:
        service_id = secrets.token_hex(8)
        catalog.put_value(SERVICE_ID, service_id)
    return str(service_id)


def _view(record: CollectionRecord) -> rest.Collection:
    return rest.Collection(
        name=record.name,
        model=record.settings["model"],
        embedding_model=record.settings["embedding_model"],
        preamble=record.settings["preamble"],
        warm_context=record.settings["warm_context"],
        passage_tokens=record.passage_tokens,
        num_documents=record.num_documents,
        num_passages=record.num_passages,
        created_at=record.created_at,
        kv_quota_bytes=record.settings.get("kv_quota_bytes"),
        kv_ttl_s=record.settings.get("kv_ttl_s"),
    )
