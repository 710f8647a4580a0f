"""The methods: which weights move, and that no others do; from a recipe to a run that predicts."""

import json
from itertools import pairwise

import numpy as np
import pytest
import test_runs
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig

from ftdocs import evaluate, models, runs
from ftdocs.data import prepare
from ftdocs.errors import InputError
from ftdocs.methods import features, ulmfit
from ftdocs.methods.layers import train_top
from ftdocs.recipe import Recipe
from ftdocs.train import fit, train

tiny_llama = test_runs.tiny_llama  # a fixture
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


# --- ulmfit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [BERT, LLAMA], ids=["bert", "llama"])
def test_every_parameter_is_in_one_group_from_the_head_down(config):
    model = classifier(config)
    groups = ulmfit.layer_groups(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [[names[id(parameter)] for parameter in group] for group in groups]
    assert sorted(name for group in found for name in group) == sorted(names.values())
    assert any(name.startswith(("classifier", "score")) for name in found[0])
    for place in (1, 2, 3):  # three blocks, one a group, the last one first
        assert all(f".{3 - place}." in name or "embed" in name for name in found[place])
    assert any("embed" in name for name in found[3])


def test_the_slanted_rate_rises_for_a_tenth_and_falls_to_its_smallest():
    rates = [ulmfit.slanted_triangular(step, 100) for step in range(101)]
    assert rates.index(max(rates)) == 10
    assert max(rates) == 1.0
    assert rates[0] == rates[100] == 1 / 32
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_groups_are_set_free_one_by_one_in_the_first_half():
    counts = [ulmfit.unfrozen(step, 12) for step in range(1, 13)]
    assert counts == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 4]


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


class Stopped(Exception):
    """What a test stops a run with, between two checkpoints."""


@pytest.mark.parametrize("engine", ["loop", "trainer"])
def test_ulmfit_reads_the_training_texts_first_and_resumes_to_the_same_bits(
    engine, reviews, tmp_path, tiny_llama
):
    recipe = Recipe(
        model=str(tiny_llama),
        data={"path": reviews, "validation": 0.2, "test": 0.2},
        method={"name": "ulmfit"},
        train={"max_steps": 8, "batch_size": 2, "seq_len": 16, "engine": engine, "schedule": "slanted",
               "save_every": 1, "eval_every": 1, "learning_rate": 1e-2},
    )  # fmt: skip
    whole = train(recipe, tmp_path / "whole").run
    splits = prepare.load_splits(recipe.data, recipe.train.seed)
    read = [json.loads(line)["text"] for line in (whole / "language.jsonl").read_text().splitlines()]
    assert sorted(read) == sorted(row["text"] for row in splits.train)

    def stop(step, metrics):
        if step == 3:  # with part of the layers set free
            raise Stopped

    with pytest.raises(Stopped):
        train(recipe, tmp_path / "stopped", watch=stop)
    assert runs.state(tmp_path / "stopped") == "unfinished"
    # Out of memory, say: what is finished is not asked how its steps were carried out.
    stopped = train(recipe.changed({"train.checkpointing": True}), tmp_path / "stopped", resume=True).run
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (whole, stopped)]
    assert weights[0] == weights[1]
    rates = [row["learning_rate"] for row in runs.read_metrics(whole) if "learning_rate" in row]
    assert rates == pytest.approx([1e-2 * ulmfit.slanted_triangular(step, 8) for step in range(8)])


def test_lower_layers_move_later_and_less(reviews, tmp_path):
    def moved(name, **method):
        recipe = Recipe(
            model="minilm",
            data={"path": reviews, "validation": 0, "test": 0.2},
            method={"name": "ulmfit", "language_epochs": 0, **method},
            train={"max_steps": 4, "batch_size": 4, "seq_len": 16, "engine": "loop", "schedule": "constant"},
        )
        before, _ = models.load(recipe, ["bad", "good"])
        after, _ = models.load_run(train(recipe, tmp_path / name).run)
        pairs = zip(ulmfit.layer_groups(before), ulmfit.layer_groups(after), strict=True)
        return [max((a - b).abs().max().item() for a, b in zip(*pair, strict=True)) for pair in pairs]

    alike, slower = moved("alike", discriminative=1, unfreeze=False), moved("slower", unfreeze=False)
    assert all(
        0.7 * alike[0] < change < 1.5 * alike[0] for change in alike
    )  # AdamW's steps are as large as the rate
    for place in range(4):
        assert slower[place] == pytest.approx(alike[place] / 2.6**place, rel=0.3)
    frozen = moved("frozen", discriminative=1)
    assert frozen[0] > frozen[1] > frozen[2] > 0


def test_features_of_data_without_labels_are_refused(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"text number {n} of some"}) + "\n" for n in range(20)))
    recipe = Recipe(model="minilm", data={"path": path}, method={"name": "features"})
    with pytest.raises(InputError, match="no labels"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_reading_first_with_an_encoder_is_refused_before_anything_is_written(reviews, tmp_path):
    recipe = Recipe(model="minilm", data={"path": reviews}, method={"name": "ulmfit"})
    with pytest.raises(InputError, match="cannot generate text"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["features", "ulmfit"])
def test_what_trains_with_one_process_says_so_before_anything_is_written(
    method, reviews, tmp_path, monkeypatch
):
    monkeypatch.setattr("ftdocs.processes.count", lambda: 2)
    with pytest.raises(InputError, match=rf"method\.name: {method} trains with one process"):
        fit(
            Recipe(model="minilm", data={"path": reviews}, method={"name": method}),
            tmp_path / "run",
            {},
            False,
            False,
        )
    assert not (tmp_path / "run").exists()
