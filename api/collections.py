"""The collections of the catalog: made, opened for the model that is served, and what KV they hold."""

import secrets
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from kvblend.api.access.tenant_salt import TenantSalts
from kvblend.api.kv.document_windows import LEAD_TOKENS, WINDOW_TOKENS
from kvblend.api.kv.encode_context import EncodeContext, default_warm_context, make_encode_context
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.api.kv.owners import KVOwners
from kvblend.api.kv.passage_kv import KVName
from kvblend.api.open_collection import OpenCollection
from kvblend.api.prompt.builder import DEFAULT_PREAMBLE, PromptBuilder
from kvblend.core import rest
from kvblend.core.collection_name import DEFAULT_TENANT, collection_key, name_in_tenant, tenant_of
from kvblend.core.errors import ConflictError, InvalidRequestError, NotFoundError
from kvblend.core.rest import CollectionCreate, CollectionUpdate
from kvblend.retriever import Catalog, CollectionRecord, CollectionSettings

__all__ = ["Collections"]

SERVICE_ID = "service_id"
LEAST_MODEL_LEN = 2048
"""Tokens that windows are made for where no engine answers to say its model's length."""
DOCUMENT, NEUTRAL = "document", "neutral"
"""What a collection's warm context is called where it is no text of its own."""


class Collections:
    """Creates and opens collections. Its methods read files: call them in a thread."""

    def __init__(
        self,
        catalog: Catalog,
        prompts: PromptBuilder,
        *,
        model: str,
        embedding_model: str,
        share_tenants: bool = False,
        tenant_quota: Callable[[str], int | None] = lambda tenant: None,
    ) -> None:
        """`tenant_quota`: bytes of KV that a tenant, and so each of its collections, may have; None: no bound."""
        self._tenant_quota = tenant_quota
        self._catalog = catalog
        self.salts = TenantSalts(catalog, share=share_tenants)
        self._prompts = prompts
        self._model = model
        self._embedding_model = embedding_model
        self.owners = KVOwners(_service_id(catalog))
        self._default = self._encode_context(DEFAULT_PREAMBLE, default_warm_context())

    def default(self, tenant: str = DEFAULT_TENANT) -> OpenCollection:
        """What passages get that a caller of a tenant supplies without a collection."""
        context = replace(self._default, salt=self.salts.of(tenant))
        name, owner = collection_key(tenant, ""), self.owners.of_tenant(tenant)
        return OpenCollection(name, DEFAULT_PREAMBLE, context, tenant_owner=owner)

    def create(
        self, order: CollectionCreate, *, max_model_len: int | None, tenant: str = DEFAULT_TENANT
    ) -> rest.Collection:
        """Create a collection of a tenant's. What its prompts and encode context begin with is kept in tokens, so that
        a template that says the date does not change it every day.

        Raises ConflictError where the name is taken, InvalidRequestError where no passage would fit the model.
        """
        preamble = DEFAULT_PREAMBLE if order.preamble is None else order.preamble
        warm_context = DOCUMENT if order.warm_context is None else order.warm_context
        text = default_warm_context() if warm_context in (DOCUMENT, NEUTRAL) else warm_context
        context = self._encode_context(preamble, text)
        window_tokens = _window_tokens(context, warm_context, order.passage_tokens, max_model_len)
        settings = {
            "model": self._model,
            "tokenizer": self._prompts.fingerprint,
            "embedding_model": self._embedding_model,
            "preamble": preamble,
            "warm_context": warm_context,
            "encode_context": list(context.token_ids),
            "num_preamble": context.num_preamble,
            "salt": self.salts.of(tenant),
            "window_tokens": window_tokens if warm_context == DOCUMENT else None,
            "kv_quota_bytes": order.kv_quota_bytes,
            "kv_ttl_s": order.kv_ttl_s,
            "order": order.order,
            "mode": order.mode,
        }
        record = self._catalog.create_collection(
            collection_key(tenant, order.name), passage_tokens=order.passage_tokens, settings=settings
        )
        return _view(record)

    def begin_rebuild(self, name: str, passage_tokens: int | None, *, max_model_len: int | None) -> OpenCollection:
        """Have a collection's documents split into passages of so many tokens (None: as many as before) and embedded by
        the model loaded now, from here on. Raises NotFoundError, ConflictError, InvalidRequestError."""
        collection, record = self.open(name), self._catalog.collection_settings(name)
        settings: dict[str, Any] = {"embedding_model": self._embedding_model}
        if passage_tokens is not None and passage_tokens != record.passage_tokens:
            warm_context = record.settings["warm_context"]
            window_tokens = _window_tokens(collection.encode_context, warm_context, passage_tokens, max_model_len)
            settings |= {"window_tokens": window_tokens if warm_context == DOCUMENT else None}
        self._catalog.update_collection(name, settings, passage_tokens=passage_tokens)
        return self.open(name)

    def document_ids(self, name: str) -> list[str]:
        """The ids of all documents of a collection. Raises NotFoundError."""
        found, after = list[str](), None
        while documents := self._catalog.list_documents(name, limit=1000, after=after):
            found += [document.id for document in documents]
            after = documents[-1].id
        return found

    def update(self, name: str, update: CollectionUpdate) -> rest.Collection:
        """Set the limits that `update` names. Raises NotFoundError."""
        return _view(self._catalog.update_collection(name, update.model_dump(exclude_unset=True)))

    def view(self, name: str) -> rest.Collection:
        """A collection as it stands. Raises NotFoundError."""
        return _view(self._catalog.get_collection(name))

    def views(self, tenant: str = DEFAULT_TENANT) -> list[rest.Collection]:
        """All collections of a tenant, by name."""
        return [_view(record) for record in self._catalog.list_collections() if tenant_of(record.name) == tenant]

    def open(self, name: str) -> OpenCollection:
        """Open a collection. Raises NotFoundError, and ConflictError where its passages are another model's tokens."""
        record = self._catalog.collection_settings(name)
        if record.settings["tokenizer"] != self._prompts.fingerprint:
            raise ConflictError(
                f"collection {name_in_tenant(name)!r} was made for the model {record.settings['model']!r}; "
                f"{self._model!r}, which is served, has other tokens",
                param="collection",
            )
        return self._open(record)

    def all(self) -> list[OpenCollection]:
        """Every collection, of whatever model."""
        return [self._open(record) for record in self._catalog.list_settings()]

    def any(self, name: str) -> OpenCollection:
        """A collection of whatever model. Raises NotFoundError."""
        return self._open(self._catalog.collection_settings(name))

    def usable(self) -> list[OpenCollection]:
        """The collections whose passages are the served model's tokens."""
        records = self._catalog.list_settings()
        return [self._open(record) for record in records if record.settings["tokenizer"] == self._prompts.fingerprint]

    def unreferenced(self, names: Collection[KVName]) -> set[KVName]:
        """Those names of passage KV that no collection's passages have."""
        return set(names) - self._held(names)

    def absent(self, name: str, passage_ids: Collection[str]) -> set[str]:
        """Those of these passages that a collection does not hold: all where there is none of that name."""
        try:
            return set(passage_ids).difference(self._catalog.passage_lengths(name, passage_ids))
        except NotFoundError:
            return set(passage_ids)

    def document_names(self, name: str, document_id: str) -> set[KVName]:
        """The names of the KV of a document's passages; none where there is no such document."""
        collection = self.any(name)
        try:
            places = self._catalog.document_places(name, document_id)
        except NotFoundError:
            return set()
        return {(context, place.passage_id) for place in places for context in collection.contexts([place.context])}

    def document_runs(self, name: str, document_id: str) -> list[EncodeRun]:
        """How the passages of a document are encoded; none where there is no such document."""
        try:
            passages = self._catalog.document_passages(name, document_id)
            return self.any(name).runs([passage.token_ids for passage in passages])
        except NotFoundError:
            return []

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
        collections = {own.name: own for own in self.all() if own.name != but}
        wanted = {*names, *(("", passage_id) for _, passage_id in names)}  # "" is the collection's own context
        places = self._catalog.places_of(sorted(wanted))
        held = {
            (context, place.passage_id)
            for place in places
            if place.collection in collections
            for context in collections[place.collection].contexts([place.context])
        }
        return held & set(names)

    def _open(self, record: CollectionSettings) -> OpenCollection:
        settings = record.settings
        context = EncodeContext(tuple(settings["encode_context"]), settings["num_preamble"], settings.get("salt"))
        tenant = tenant_of(record.name)
        quotas = settings.get("kv_quota_bytes"), self._tenant_quota(tenant)
        return OpenCollection(
            record.name,
            settings["preamble"],
            context,
            settings.get("window_tokens"),
            self.owners.of_collection(record.name),
            self.owners.of_tenant(tenant),
            min((bound for bound in quotas if bound is not None), default=None),
            settings.get("kv_ttl_s"),
            settings["warm_context"] in (DOCUMENT, NEUTRAL, default_warm_context()),
            settings.get("order") or "rank",
            settings.get("mode") or "hybrid",
        )

    def _encode_context(self, preamble: str, warm_context: str) -> EncodeContext:
        warm_ids = self._prompts.passage_ids(warm_context) if warm_context.strip() else ()
        return make_encode_context(self._prompts.preamble_ids(preamble), warm_ids)


def _window_tokens(context: EncodeContext, warm_context: str, passage_tokens: int, max_model_len: int | None) -> int:
    """How long the windows of documents are, where they have any. Raises InvalidRequestError where no passage would fit
    the model."""
    num_before = len(context.token_ids)
    if warm_context == DOCUMENT:
        num_before = max(num_before, context.num_preamble + LEAD_TOKENS)
    num_tokens = num_before + passage_tokens + 1
    if max_model_len is not None and num_tokens > max_model_len:
        raise InvalidRequestError(
            f"preamble, warm context and a passage of {passage_tokens} tokens take {num_tokens} tokens; the "
            f"model takes {max_model_len}",
            param="passage_tokens",
        )
    most = LEAST_MODEL_LEN if max_model_len is None else max_model_len
    return max(passage_tokens, min(WINDOW_TOKENS, most - num_before - 1))


def _service_id(catalog: Catalog) -> str:
    service_id = catalog.get_value(SERVICE_ID)
    if service_id is None:
        service_id = secrets.token_hex(8)
        catalog.put_value(SERVICE_ID, service_id)
    return str(service_id)


def _view(record: CollectionRecord) -> rest.Collection:
    return rest.Collection(
        name=name_in_tenant(record.name),
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
        order=record.settings.get("order") or "rank",
        mode=record.settings.get("mode") or "hybrid",
    )
