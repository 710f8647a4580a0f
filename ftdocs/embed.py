"""Texts as vectors: what a frozen encoder makes of them."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from ftdocs import assets, hardware, models


@torch.no_grad()
def embed(
    texts: Sequence[str], model: str = "minilm", seq_len: int = 256, batch_size: int = 64
) -> np.ndarray:
    """Sentence embeddings: the mean of the last layer's vectors over a text's tokens, scaled to length 1.

    That is how `all-MiniLM-L6-v2 <https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2>`_ was trained.
    The model stays as it is.

    Args:
        texts: any number of texts.
        model: an encoder, as ``assets.model_path`` takes it.
        seq_len: tokens of a text that are read; the rest is left out.
        batch_size: texts at once, of similar length.

    Returns:
        float32, (texts, hidden size), in the order of ``texts``.
    """
    folder = assets.model_path(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder, use_safetensors=True).to(hardware.device()).eval()
    vectors = np.empty((len(texts), encoder.config.hidden_size), np.float32)
    order = np.argsort([len(text) for text in texts], kind="stable")  # little padding in a batch
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer(
            [texts[index] for index in chosen],
            padding=True,
            truncation=True,
            max_length=seq_len,
            return_tensors="pt",
        ).to(encoder.device)
        with models.autocast(encoder.device):  # in bfloat16 where the device is fast at it
            hidden = encoder(**batch).last_hidden_state.float()  # (B, T, H)
        there = batch["attention_mask"].unsqueeze(-1)  # (B, T, 1), 0 where it is only filled up
        mean = (hidden * there).sum(dim=1) / there.sum(dim=1)
        vectors[chosen] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
    return vectors
