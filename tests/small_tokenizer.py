"""SmolLM2's tokenizer with a tenth of its words: the same special tokens and template, and soon read."""

from functools import cache

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ftdocs import assets
from ftdocs.data.docstrings import collect


@cache
def small_tokenizer() -> PreTrainedTokenizerBase:
    """For models of random weights, which say nothing whatever their words are."""
    whole = AutoTokenizer.from_pretrained(assets.model_path("smollm2-135m-instruct"))
    texts = [row["text"] for row in collect(["peft"])]
    small = whole.train_new_from_iterator(texts, 5000, show_progress=False)
    assert small.convert_tokens_to_ids(whole.all_special_tokens) == whole.all_special_ids
    assert small.chat_template == whole.chat_template and small.eos_token_id == whole.eos_token_id
    return small
