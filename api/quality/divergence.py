"""How far an answer is from full prefill's, where its request asks for it."""

import asyncio

from kvblend.api.prompt.builder import PromptBuilder
from kvblend.api.quality.answer_sample import AnswerSample
from kvblend.core.report import AnswerDivergence, BlendReport

__all__ = ["with_divergence"]


async def with_divergence(report: BlendReport, sample: AnswerSample, prompts: PromptBuilder) -> BlendReport:
    """The report with the divergence of the sampled answer; as it is where nothing was answered.

    The prompt is prefilled in full for it. Raises what `EngineClient` raises.
    """
    if not sample.tokens:
        return report
    found = await sample.compare()
    texts = await asyncio.to_thread(prompts.token_texts, [token.token_id for token in sample.tokens])
    return report.model_copy(update={"divergence": AnswerDivergence(kls=found.kls, agrees=found.agrees, texts=texts)})
