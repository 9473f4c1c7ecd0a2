"""The lab and the connector select the same tokens and blend to the same KV, from the same passage KV files.

But for rounding, which may change the places of two tokens whose scores nearly tie.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kvblend.blend import SELECTORS
from kvblend.blend.hf import EncodedPassage, HuggingFaceModel, extend, lay_out
from kvblend.blend.selectors import Serving
from kvblend.core.identity import token_hash
from kvblend.core.settings import Settings
from kvblend.store import PassageKVKey, StoredPassageKV, TieredStore
from tests.preloaded import run_script
from tests.tolerances import Tolerances

RECORDING = Path(__file__).with_name("recording_scenario.py")
RATIO = 0.15


@pytest.mark.parametrize("name", ["demo", "gemma3"])
def test_same_tokens_and_kv(
    name: str,
    demo_model_path: Path,
    tiny_model_path: Callable[[str], Path],
    tmp_path: Path,
    dtype: str,
    tolerances: Tolerances,
) -> None:
    """Reference: the connector in vLLM. Ours: the Hugging Face adapter, through the same `blend/` code."""
    path = demo_model_path if name == "demo" else tiny_model_path(name)
    output, store = tmp_path / "recorded.pt", tmp_path / "store"
    store.mkdir()
    done = run_script(RECORDING, path, store, dtype, RATIO, output, timeout_s=300)
    assert done.returncode == 0, done.stderr[-3000:]
    recorded = torch.load(output)
    parts = recorded["prompt"]

    model = HuggingFaceModel.load(path, dtype=getattr(torch, dtype))
    tiers = TieredStore.from_settings(Settings(disk_path=store, cpu_bytes=0))

    def stored(encode_context: list[int], passage: list[int]) -> torch.Tensor:
        ids = token_hash(encode_context), token_hash(passage)
        key = PassageKVKey(recorded["fingerprint"], *ids, *recorded["heads"])
        file = tiers.open_many([key])[key]
        assert isinstance(file, StoredPassageKV)
        with file:
            return file.read()

    context = parts["encode_context"]
    passages = [EncodedPassage(passage, stored(context, passage), context) for passage in parts["passages"]]
    preamble_kv = stored([], parts["preamble"])
    prompt = lay_out(model, parts["preamble"], preamble_kv, passages, parts["question"], room=len(recorded["answer"]))
    scores = prompt.probe()
    computed = Serving(SELECTORS["probe"]).blend(prompt.copy(), recompute_ratio=RATIO)
    differing = sorted(set(computed.selected.tolist()) ^ set(recorded["selected"].tolist()))
    assert len(computed.selected) == len(recorded["selected"])
    distances = (scores[differing] / scores[computed.selected].min() - 1).abs()
    assert (distances <= tolerances.score_tie).all(), distances.tolist()

    def deviations() -> list[float]:
        """Of the repaired tokens' keys and of their values, relative to their norms."""
        ours, theirs = (kv[:, :, recorded["selected"]].float() for kv in (prompt.context.data, recorded["context"]))
        return [float((ours[:, part] - theirs[:, part]).norm() / theirs[:, part].norm()) for part in (0, 1)]

    assert max(deviations()) > tolerances.control * tolerances.kv, "the negative control: nothing is repaired yet"
    prompt.repair(recorded["selected"])
    assert max(deviations()) < tolerances.kv
    whole, recorded_whole = prompt.context.data.float(), recorded["context"].float()
    assert (whole - recorded_whole).norm() < tolerances.kv * recorded_whole.norm()

    tail = parts["question"] + recorded["answer"][:-1]
    logits = extend(model, prompt.whole, tail, start=prompt.num_context, num_last=len(recorded["answer"]))
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, torch.tensor(recorded["answer"])[:, None])[:, 0]
    assert (logprobs.max(-1).values - chosen).max() < tolerances.logprob
