"""The encoders that a lab has at hand, with the KV of their encode contexts."""

from collections import OrderedDict

from kvblend.blend.hf import HuggingFaceModel, PassageEncoder

__all__ = ["Encoders"]

NUM_KEPT = 12


class Encoders:
    """From an encode context to its encoder. The last few are kept; one that begins as a kept one goes on from it."""

    def __init__(self, model: HuggingFaceModel) -> None:
        self._model = model
        self._kept: OrderedDict[tuple[int, ...], PassageEncoder] = OrderedDict()

    def get(self, encode_context: tuple[int, ...]) -> PassageEncoder:
        encoder = self._kept.get(encode_context)
        if encoder is None:
            begun = [own for own in self._kept if own == encode_context[: len(own)]]
            longest = max(begun, key=len, default=None)
            encoder = PassageEncoder(
                self._model, encode_context, begun=None if longest is None else self._kept[longest]
            )
            self._kept[encode_context] = encoder
        self._kept.move_to_end(encode_context)
        while len(self._kept) > NUM_KEPT:
            self._kept.popitem(last=False)
        return encoder
