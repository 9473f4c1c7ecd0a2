"""Blend one prompt on real vLLM and keep what the connector selected and the context it wrote.

python recording_scenario.py MODEL_FOLDER STORE_FOLDER DTYPE RATIO OUTPUT_FILE
"""

import runpy
import sys
from pathlib import Path
from typing import Any

import torch

from kvblend.vllm_connector import worker_half
from kvblend.vllm_connector.engine.host_blend import HostBlend
from kvblend.vllm_connector.worker.blend import PassageSource

SCENARIO = runpy.run_path(str(Path(__file__).parents[2] / "vllm_connector" / "scenario.py"))

recorded: dict[str, Any] = {}


class RecordingJob(HostBlend):
    """A blend that can be looked into."""

    def load(self, source: PassageSource) -> list[bool]:
        recorded["fingerprint"], recorded["heads"] = source.model_fingerprint, source.heads
        return super().load(source)

    def select(self, scores: torch.Tensor | None) -> None:
        super().select(scores)
        assert self.todo is not None
        recorded["selected"] = self.todo.clone()

    def finish(self) -> None:
        pages, tables = self.context.pages, self.context.tables
        layers = [pages.read(index, tables[group], self.num_tokens) for index, group in enumerate(pages.groups)]
        recorded["context"] = torch.stack([torch.stack(layer) for layer in layers])
        super().finish()


def main() -> None:
    model, store, dtype, ratio, output = sys.argv[1], Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]), sys.argv[5]
    vars(worker_half)["HostBlend"] = RecordingJob
    engine = SCENARIO["Engine"](model, store, {"dtype": dtype})
    prompts = SCENARIO["Prompts"](engine.llm.get_tokenizer())
    engine.run([(tokens, {"encode": order}) for tokens, order in prompts.encodes()])
    (answer,) = engine.run([(prompts.prompt, {"blend": prompts.plan(ratio)})])
    torch.save({**recorded, "prompt": vars(prompts), "answer": list(answer.outputs[0].token_ids)}, output)


if __name__ == "__main__":
    main()
