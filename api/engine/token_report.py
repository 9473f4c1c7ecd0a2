"""The fate of every context token as the service tells it: with its text, and of prompts that were not blended too."""

from itertools import accumulate, pairwise

from kvblend.api.prompt.blend_prompt import BlendPrompt
from kvblend.api.prompt.builder import PromptBuilder
from kvblend.core.report import BlendReport, TokenReport

__all__ = ["with_tokens"]


def with_tokens(report: BlendReport, prompt: BlendPrompt, prompts: PromptBuilder) -> BlendReport:
    """The report with what became of each of the prompt's context tokens; as it is where the connector did not say it.

    It decodes every token: call it in a thread.
    """
    tokens = report.tokens
    if tokens is None and report.outcome != "blended":  # what a prefix cache held is a prompt's beginning
        num_exact = min(report.exact_tokens, prompt.num_context_tokens)
        tokens = TokenReport.of(["exact"] * num_exact).longer(prompt.num_context_tokens - num_exact)
    if tokens is None:
        return report
    lengths = (len(passage.token_ids) for passage in prompt.passages)
    bounds = pairwise(accumulate(lengths, initial=len(prompt.frame.preamble_ids)))
    texts = prompts.token_texts(prompt.token_ids[: prompt.num_context_tokens])
    return report.model_copy(update={"tokens": tokens.model_copy(update={"texts": texts, "passages": list(bounds)})})
