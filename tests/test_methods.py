"""The methods: which weights move, and that no others do; from a recipe to a run that predicts."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig

from ftdocs import evaluate, models, runs
from ftdocs.data import prepare
from ftdocs.errors import InputError
from ftdocs.methods import features
from ftdocs.methods.layers import train_top
from ftdocs.recipe import Recipe
from ftdocs.train import train

SMALL = {
    "vocab_size": 99,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
BERT = BertConfig(**SMALL, num_labels=3)
BERT_TOP = {f"{part}.{kind}" for part in ("bert.pooler.dense", "classifier") for kind in ("weight", "bias")}
LLAMA = LlamaConfig(**SMALL, num_labels=3, pad_token_id=0)


def classifier(config):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("config", "block", "above"),
    [
        (BERT, "bert.encoder.layer.", BERT_TOP),
        (LLAMA, "model.layers.", {"model.norm.weight", "score.weight"}),
    ],
)  # fmt: skip
def test_the_top_layers_are_trained_and_nothing_below(config, block, above, layers):
    model = train_top(classifier(config), layers)
    numbers = {int(name.removeprefix(block).split(".")[0]) for name in trained(model) - above}
    assert numbers == set(range(3 - layers, 3))
    assert above <= trained(model)
    whole = [
        name
        for name, _ in model.named_parameters()
        if name.startswith(tuple(f"{block}{n}." for n in numbers))
    ]
    assert trained(model) == above | set(whole)


def test_more_layers_than_the_model_has_are_refused():
    with pytest.raises(InputError, match=r"method\.layers: 4, but this model has 3 blocks"):
        train_top(classifier(BERT), 4)


# --- features -------------------------------------------------------------------------------------


def encoded(rows, labels=3, seed=0):
    """Rows of random tokens whose first one after the start tells the label."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(rows):
        label = int(random.integers(labels))
        ids = [1, 10 + label, *random.integers(20, 99, random.integers(3, 9)).tolist()]
        found.append({"input_ids": ids, "label": label, "row": number + 1})
    return found


@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("config", [BERT, LLAMA], ids=["bert", "llama"])
def test_a_filled_head_gives_the_regressions_answers(config, labels):
    config.num_labels = labels
    model, rows = classifier(config), encoded(60, labels)
    with features.headless(model):
        given = evaluate.predict(model, rows, 0, precision="fp32")
    assert given.shape == (60, 16)
    has_bias = features.linear_head(model).bias is not None
    fitted = features.logistic_regression(given, [row["label"] for row in rows], has_bias)
    features.fill_head(model, fitted)
    logits = torch.from_numpy(evaluate.predict(model, rows, 0, precision="fp32"))
    np.testing.assert_allclose(logits.softmax(-1).numpy(), fitted.predict_proba(given), atol=1e-4)


def test_a_head_of_more_than_one_layer_is_refused():
    from transformers import RobertaConfig

    model = classifier(RobertaConfig(**SMALL, num_labels=3))
    with pytest.raises(InputError, match=r"classifier\.dense, classifier\.out_proj; use layers"):
        features.linear_head(model)


# --- from a recipe to a run -----------------------------------------------------------------------


@pytest.fixture
def reviews(tmp_path):
    texts = {"good": "wonderful moving film, I loved it", "bad": "boring dull mess, I hated it"}
    rows = [{"text": f"{text} {n}", "label": label} for n in range(20) for label, text in texts.items()]
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("method", [{"name": "features"}, {"name": "layers", "layers": 1}])
def test_only_what_the_method_names_has_moved_in_the_run(method, reviews, tmp_path):
    recipe = Recipe(
        model="minilm",
        data={"path": reviews, "validation": 0.2, "test": 0.2},
        method=method,
        train={"max_steps": 2, "batch_size": 4, "seq_len": 16, "engine": "loop"},
    )
    result = train(recipe, tmp_path / "run")
    before, _ = models.load(recipe, ["bad", "good"])
    after, tokenizer = models.load_run(result.run)
    old = dict(before.named_parameters())
    moved = {name for name, weight in after.named_parameters() if not torch.equal(weight, old[name])}
    top = ("classifier.", "bert.pooler.", "bert.encoder.layer.5.")[: 1 if method["name"] == "features" else 3]
    assert moved
    assert all(name.startswith(top) for name in moved), moved
    assert {name for name in old if name.startswith("classifier.")} <= moved
    rows = [row for row in runs.read_metrics(result.run) if "eval_accuracy" in row]
    assert len(rows) == 2
    if method["name"] == "features":
        assert rows[-1]["eval_accuracy"] == 1.0
        assert result.train_tokens > 0
        splits = prepare.load_splits(recipe.data, 0)
        test = prepare.encode(splits.test, "label", tokenizer, 16, splits.labels)
        found = evaluate.predict(after, test, models.pad_token_id(tokenizer)).argmax(1)
        assert found.tolist() == [row["label"] for row in test]
        again = train(recipe, tmp_path / "run")
        assert again == result  # a finished run is reused


def test_features_of_data_without_labels_are_refused(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"text number {n} of some"}) + "\n" for n in range(20)))
    recipe = Recipe(model="minilm", data={"path": path}, method={"name": "features"})
    with pytest.raises(InputError, match="no labels"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
