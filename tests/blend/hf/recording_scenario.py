"""Blend one prompt on real vLLM and keep what the connector selected and the context it wrote.

python recording_scenario.py MODEL_FOLDER STORE_FOLDER DTYPE RATIO OUTPUT_FILE
"""

import runpy
import sys
from pathlib import Path
from typing import Any

import torch

from kvblend.blend import ModelFlops
from kvblend.vllm_connector.engine.host_context import HostContext
from kvblend.vllm_connector.worker import half
from kvblend.vllm_connector.worker.blend import Blend
from kvblend.vllm_connector.worker.stager import PassageSource

SCENARIO = runpy.run_path(str(Path(__file__).parents[2] / "vllm_connector" / "scenario.py"))

recorded: dict[str, Any] = {}


class RecordedBlend(Blend):
    """A blend that can be looked into."""

    def stage(self, source: PassageSource) -> None:
        recorded["fingerprint"], recorded["heads"] = source.model_fingerprint, source.heads
        super().stage(source)

    def select(self, scores: torch.Tensor | None, flops: ModelFlops) -> None:
        super().select(scores, flops)
        recorded["selected"] = self.todo.clone()

    def finish(self) -> None:
        assert isinstance(self.context, HostContext)
        pages, tables = self.context.pages, self.context.tables
        layers = [pages.read(index, tables[layer.group], self.num_tokens) for index, layer in enumerate(pages.layers)]
        recorded["context"] = torch.stack([torch.stack(layer) for layer in layers])
        super().finish()


def main() -> None:
    model, store, dtype, ratio, output = sys.argv[1], Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]), sys.argv[5]
    vars(half)["Blend"] = RecordedBlend
    engine = SCENARIO["Engine"](model, store, {"dtype": dtype})
    prompts = SCENARIO["Prompts"](engine.llm.get_tokenizer())
    engine.run([(tokens, {"encode": order}) for tokens, order in prompts.encodes()])
    (answer,) = engine.run([(prompts.prompt, {"blend": prompts.plan(ratio)})])
    torch.save({**recorded, "prompt": vars(prompts), "answer": list(answer.outputs[0].token_ids)}, output)


if __name__ == "__main__":
    main()
