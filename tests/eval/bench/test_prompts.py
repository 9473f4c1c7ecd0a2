"""The benchmarks' prompts on chat templates that are not ChatML, on base models, and the dtype they are measured in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from kvblend.cli.bench.served_dtype import served_dtype
from kvblend.cli.engine import default_dtype
from kvblend.eval.bench.passages import bench_passages
from kvblend.eval.bench.prompts import BenchPrompts
from kvblend.eval.bench.ttft import QUESTION

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LAYOUTS = {
    "llama3": (
        LLAMA3,
        "<|begin_of_text|>",
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "Passages:\n\n",
        f"Question: {QUESTION}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "gemma": (
        GEMMA,
        "<bos>",
        "<start_of_turn>user\nBe brief.\n\nPassages:\n\n",
        f"Question: {QUESTION}<end_of_turn>\n<start_of_turn>model\n",
    ),
    "base": (None, "<bos>", "Be brief.\n\nPassages:\n\n", f"Question: {QUESTION}\n\nAnswer:"),
}


def tokenizer_with(path: Path, template: str | None, bos: str) -> Any:
    """The demo's tokenizer with another template and a BOS token that it puts in front of every text."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"bos_token": bos})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    return tokenizer


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompts_are_the_model_s_own(layout: str, demo_model_path: Path) -> None:
    """BOS once, in front; the template's own marks around passages and question, and no ChatML."""
    template, bos, before, after = LAYOUTS[layout]
    tokenizer = tokenizer_with(demo_model_path, template, bos)
    prompts = BenchPrompts(tokenizer, "Be brief.")
    passages = bench_passages(tokenizer, num_passages=2, passage_tokens=50)
    ids = prompts.prompt(passages, prompts.question(QUESTION))
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    text = tokenizer.decode(ids)
    assert text == bos + before + tokenizer.decode(passages[0] + passages[1]) + after
    assert "<|im_" not in text
    twice = tokenizer(text).input_ids
    assert twice.count(tokenizer.bos_token_id) == 2, "a text that has its BOS must not be given one"


def test_a_passage_is_cut_and_ended(demo_model_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path)
    passage = BenchPrompts(tokenizer).passage("one two three four five six", 3)
    assert tokenizer.decode(passage) == "one two three\n\n"


def test_dtype_is_that_of_serve(tiny_model_path: Callable[[str], Path], demo_model_path: Path) -> None:
    """What is asked for wins; else it is a concrete dtype, the demo model's own where this machine can run that."""
    assert served_dtype(str(demo_model_path), "float16") == "float16"
    assert served_dtype(str(demo_model_path)) == (default_dtype() or "bfloat16")
    assert served_dtype(str(tiny_model_path("llama3rope")), "auto") == "bfloat16", "vLLM's choice for float32 weights"
