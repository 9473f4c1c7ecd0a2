"""The language model's tokenizer, as passages need it."""

import hashlib
from typing import Any

from tokenizers import Encoding, Tokenizer

__all__ = ["SEPARATOR", "PassageTokenizer", "encode_alone"]

SEPARATOR = "\n\n"


class PassageTokenizer:
    """Tokenizes a passage on its own, followed by the separator; safe to use from many threads.

    What looks like a control token in a document (`<|im_end|>`) is tokenized as the plain text that it is,
    so that a document cannot end its turn and speak as someone else. Any other text gets the tokens of
    `tokenizer(text + SEPARATOR, add_special_tokens=False)`.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Take a `tokenizers.Tokenizer`, or a Hugging Face fast tokenizer that wraps one; it is copied.

        Raises:
            TypeError: the tokenizer is neither.
        """
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not isinstance(backend, Tokenizer):
            raise TypeError(f"a fast tokenizer is needed, not {type(tokenizer).__name__}")
        self.definition: str = backend.to_str()
        """What another process makes the same tokenizer of."""
        self.fingerprint = hashlib.sha256(self.definition.encode()).hexdigest()
        self._tokenizer = Tokenizer.from_str(self.definition)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True

    def encode_passage(self, text: str) -> list[int]:
        """Token ids of a passage: its text and the separator."""
        return encode_alone(self._tokenizer, text + SEPARATOR)

    def count(self, text: str) -> int:
        """Number of tokens of `text` alone, without the separator."""
        return len(encode_alone(self._tokenizer, text))

    def token_ends(self, text: str) -> list[int]:
        """For each token of `text`, where it ends in `text` (in characters)."""
        encoding: Encoding = self._tokenizer.encode_batch([text], add_special_tokens=False)[0]
        return [end for _, end in encoding.offsets]

    def count_each(self, texts: list[str]) -> list[int]:
        """`count` of each text, in one call."""
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def encode_alone(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text, nothing added. Other threads run meanwhile: `Tokenizer.encode` would hold them all up."""
    encoding: Encoding = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
    return encoding.ids
