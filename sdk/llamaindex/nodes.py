"""LlamaIndex's nodes, and the passages that they are for the service."""

from collections.abc import Iterable

from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode

from kvblend.core.rest import Source, SuppliedDocument
from kvblend.sdk.frameworks.collection_search import metadata_of

__all__ = ["to_node", "to_supplied"]


def to_node(source: Source) -> NodeWithScore:
    """Turn a retrieved passage into a node whose id is the passage's, with the metadata of `metadata_of`.

    A prompt shows none of that: the passage's text alone is what has a KV.
    """
    metadata = metadata_of(source)
    origin = (
        {} if source.document_id is None else {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=source.document_id)}
    )
    node = TextNode(
        id_=source.passage_id,
        text=source.text,
        metadata=metadata,
        excluded_llm_metadata_keys=[*metadata],
        excluded_embed_metadata_keys=[*metadata],
        relationships=origin,
    )
    return NodeWithScore(node=node, score=source.score)


def to_supplied(nodes: Iterable[BaseNode | NodeWithScore]) -> list[SuppliedDocument]:
    """Turn nodes into passages to blend, each as LlamaIndex shows it to an LLM; what has no text is left out."""
    plain = [node.node if isinstance(node, NodeWithScore) else node for node in nodes]
    texts = [node.get_content(metadata_mode=MetadataMode.LLM) for node in plain]
    return [
        SuppliedDocument(text=text, id=node.node_id, metadata=node.metadata)
        for node, text in zip(plain, texts, strict=True)
        if text
    ]
