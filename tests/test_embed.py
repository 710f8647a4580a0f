"""Embeddings of the real encoder: no text feels what stands beside it in a batch."""

import numpy as np

from ftdocs.embed import embed

TEXTS = [
    "A dull film that goes nowhere.",
    "Boring, and it leads to nothing at all!",
    "The train to the coast leaves at nine.",
    "long " * 90,
]


def test_vectors_have_length_one_stay_in_order_and_do_not_feel_their_batch():
    together = embed(TEXTS, batch_size=4)
    assert together.shape == (4, 384) and together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([embed([text]) for text in TEXTS])
    assert (together * alone).sum(axis=1).min() > 0.999  # bfloat16 rounds otherwise in another shape
    assert together[0] @ together[1] > together[0] @ together[2] + 0.2
    assert embed([]).shape == (0, 384)
