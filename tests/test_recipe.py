"""What a recipe accepts, what it refuses and in which words, which setting wins, and where a token may go."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ftdocs.errors import InputError
from ftdocs.recipe import PROFILES, SEEDS, Data, Recipe, Secrets, merge, nested

BASE = "model: some-model\ndata: {path: faq.jsonl}\n"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("FTDOCS_") or name == "HF_TOKEN"]:
        monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a recipe into a folder of its own and go there, so that messages name it as the user does."""
    monkeypatch.chdir(tmp_path)

    def write(content, name="r.yaml"):
        file = Path(name)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


def refused(path, overrides=None, profile=None):
    with pytest.raises(InputError) as caught:
        Recipe.load(path, overrides, profile)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


# Syntax and files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "r.yaml: holds no keys"),
        ("# only a comment\n", "r.yaml: holds no keys"),
        ("- model\n- data\n", "r.yaml: holds no keys"),
        ("model: m\ndata: {path: [\n", "line 3: not valid YAML"),
        ("model: m\n\tdata: x\n", "line 2: not valid YAML"),
        ("model: 'm\n", "line 2: not valid YAML (found unexpected end of stream)"),
        (BASE + "---\nmodel: other\n", "line 3: not valid YAML (but found another document)"),
        (
            "model: !!python/object/apply:os.getcwd []\n",
            "line 1: not valid YAML (could not determine a constructor",
        ),
        ("? [a, b]\n: 3\n", "line 1: not valid YAML (found unhashable key)"),
        ("model: &again [*again]\n", "not valid YAML (found unconstructable recursive node)"),
        ("model: 2024-13-45\n", "r.yaml: not valid YAML (month must be in 1..12)"),
        ("model: m\x00\n", "r.yaml: not valid YAML"),
        ("[" * 990, "brackets within brackets"),
        (BASE + "1: 2\n", "r.yaml: key 1: must be text"),
        ("model: m\nmodel: n\n", "line 2: `model` stands twice"),
        (BASE + "train:\n  seed: 1\n  epochs: 2\n  seed: 2\n", "line 6: `seed` stands twice"),
    ],
)
def test_broken_yaml_is_refused_with_its_line(write, text, words):
    assert words in refused(write(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "r.json: line 1: not valid JSON"),
        ('{"model": "m",\n "data": }', "line 2: not valid JSON"),
        ('{"model": "m",\n}', "line 2: not valid JSON"),
        ("[]", "r.json: holds no keys"),
        ('[{"text": "x"}]', "r.json: is data, not a recipe; write a recipe for it: ftdocs new r.json"),
        ('{"model": "m", "data": {"path": "a", "path": "b"}}', "`path` stands twice"),
        ('{"model": "m", "data": {"path": "a"}, "train": {"learning_rate": NaN}}', "must be a finite number"),
        ("[" * 100_000, "brackets within brackets"),
    ],
)
def test_broken_json_is_refused_with_its_line(write, text, words):
    assert words in refused(write(text, "r.json"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("job = 3\n", "binds no `recipe`"),
        ("recipe = {'model': 'm'}\n", "binds no `recipe`"),
        ("x = 1\nrecipe = x / 0\n", "line 2: the recipe's own code fails (ZeroDivisionError"),
        ("x = 1\nx =\n", "line 2: the recipe's own code fails (SyntaxError: invalid syntax)"),
        ("import sys\nsys.exit(3)\n", "line 2: the recipe's own code fails (SystemExit"),
        ("from ftdocs.recipe import Recipe\nrecipe = Recipe(model='m')\n", "data: is missing"),
    ],
)
def test_broken_python_is_refused_with_its_line(write, text, words):
    assert words in refused(write(text, "r.py"))


def test_files_that_cannot_be_read(write):
    assert "no such recipe" in refused("missing.yaml")
    Path("folder.yaml").mkdir()
    assert "is a folder" in refused("folder.yaml")
    assert "byte 8 is not UTF-8" in refused(write(b"model: \xe9\n"))
    assert "byte 1 is not UTF-8" in refused(write("model: m\n".encode("utf-16")))
    assert "a recipe's name ends in .yaml, .yml, .json, .py" in refused(write(BASE, "r.toml"))
    assert "cannot be read" in refused(write(BASE) / "below-a-file.yaml")
    assert "cannot be read" in refused("x" * 300 + ".yaml")


def test_a_file_without_permission(write):
    path = write(BASE)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    assert "cannot be read (Permission denied)" in refused(path)


def test_byte_order_mark_and_windows_line_ends_are_accepted(write):
    assert Recipe.load(write(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())).model == "some-model"


def test_yaml_merge_keys_may_be_overridden(write):
    text = BASE + "train: {<<: {seed: 1, epochs: 2}, seed: 3}\n"
    train = Recipe.load(write(text)).train
    assert (train.seed, train.epochs) == (3, 2)


# Keys and values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("trian: {seed: 1}", "r.yaml: trian: unknown key; did you mean train?"),
        ("train: {sed: 1}", "r.yaml: train.sed: unknown key; did you mean seed?"),
        ("train: {batchsize: 1}", "train.batchsize: unknown key; did you mean batch_size?"),
        ("method: {rnak: 1}", "method.rnak: unknown key; did you mean rank?"),
        ("learning_rate: 1.0e-3", "learning_rate: unknown key; did you mean train.learning_rate?"),
        (
            "method: {learning_rate: 1.0e-3}",
            "method.learning_rate: unknown key; did you mean train.learning_rate?",
        ),
        ("colour: red", "colour: unknown key; valid keys: model, data, method, train, search, profiles"),
        (
            "profiles: {gpu: {trian: {seed: 1}}}",
            "r.yaml: profiles.gpu.trian: unknown key; did you mean train?",
        ),
        (
            "profiles: {gpu: {train: {sed: 1}}}",
            "r.yaml: profiles.gpu.train.sed: unknown key; did you mean seed?",
        ),
        ("profiles: {gpu: {profiles: {}}}", "profiles.gpu.profiles: a profile holds no profiles"),
        (
            "profiles: {gup: {model: m}}",
            "profiles.gup: must be 'smoke', 'cpu' or 'gpu', got 'gup'; did you mean gpu?",
        ),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_named(write, more, words):
    assert words in refused(write(BASE + more))


def test_an_unknown_key_of_data(write):
    for key in ("pth", "train_path"):
        words = f"data.{key}: unknown key; did you mean path?"
        assert words in refused(write(f"model: m\ndata: {{{key}: faq.jsonl}}\n"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("train: {seed: one}", "train.seed: must be a whole number, got 'one'"),
        ("train: {max_steps: 2.5}", "train.max_steps: must be a whole number, got 2.5"),
        ("train: {max_steps: yes}", "train.max_steps: is true, as YAML reads yes"),
        ("train: {epochs: off}", "train.epochs: is false, as YAML reads yes, no, on and off"),
        ("train: {max_steps: 0}", "train.max_steps: must be greater than or equal to 1, got 0"),
        ("train: {learning_rate: fast}", "train.learning_rate: must be a number, got 'fast'"),
        ("train: {learning_rate: -1}", "train.learning_rate: must be greater than 0, got -1"),
        ("train: {learning_rate: .inf}", "train.learning_rate: must be a finite number"),
        ("train: {learning_rate: .nan}", "train.learning_rate: must be a finite number"),
        ("train: {packing: maybe}", "train.packing: must be true or false, got 'maybe'"),
        (
            "train: {report_to: tensorboard}",
            "train.report_to: must be a list, such as [a, b], got 'tensorboard'",
        ),
        ("train: {report_to: [wandb, 2]}", "train.report_to, item 2: must be"),
        (
            "train: {schedule: linaer}",
            "must be 'linear', 'cosine', 'constant' or 'slanted', got 'linaer'; did you mean linear?",
        ),
        ("train: 3", "train: must hold keys, written below it and indented, got 3"),
        ("train:", "train: must hold keys, written below it and indented, got null"),
        (
            "method: {name: lroa}",
            "method.name: must be 'full', 'lora', 'features', 'layers', 'ulmfit', 'qlora', 'loftq', 'rslora', 'dora', "
            "'pissa', 'adalora', 'vera', 'ia3', 'prompt', 'prefix', 'norms' or 'bitfit', got 'lroa'; did you mean "
            "lora?",
        ),
        ("method: {targets: 3}", "method.targets: must be text, got 3"),
        ("method: {targets: [q_proj, 3]}", "method.targets, item 2: must be text, got 3"),
        ("method: {dropout: 1}", "method.dropout: must be less than 1, got 1"),
        ("profiles: [gpu]", "profiles: must hold keys"),
        ("profiles: {gpu: 3}", "profiles.gpu: must hold keys"),
        ("profiles: {gpu: {train: {seed: one}}}", "r.yaml: profiles.gpu.train.seed: must be a whole number"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(write, more, words):
    assert words in refused(write(BASE + more))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{}", "data: give exactly one of `path`"),
        ("{path: a.jsonl, name: docstrings}", "data: give exactly one of `path`"),
        ("{path: 3}", "data.path: must be text, a path, got 3"),
        (
            "{path: a.jsonl, validation: 0.5, test: 0.5}",
            "data: `validation` and `test` together must be below 1",
        ),
        ("{path: a.jsonl, validation: 1}", "data.validation: must be less than 1, got 1"),
        ("{path: a.jsonl, format: chat}", "data.format: must be 'messages', 'prompt'"),
        ("{path: a.jsonl, seed: 4294967296}", "data.seed: must be less than 4294967296"),
        ("{path: a.jsonl, limit: 0}", "data.limit: must be greater than or equal to 1, got 0"),
        ("faq.jsonl", "data: must hold keys, written below it and indented, got 'faq.jsonl'"),
        ("", "data: must hold keys, written below it and indented, got null"),
    ],
)
def test_wrong_data_is_refused(write, data, words):
    assert words in refused(write(f"model: m\ndata: {data}\n"))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("no", "model: is false, as YAML reads yes, no"),
        ("", "model: must be text, got null"),
        ("''", "model: must have at least 1 character"),
        ("{name: bert-base-uncased}", "model: must be text, got {'name': 'bert-base-uncased'}"),
    ],
)
def test_a_wrong_model_is_refused(write, model, words):
    assert words in refused(write(f"model: {model}\ndata: {{path: faq.jsonl}}\n"))


def test_missing_keys_and_several_problems(write):
    assert refused(write("model: m\n")) == "r.yaml: data: is missing; add it"
    assert refused(write("data: {path: a}\n")) == "r.yaml: model: is missing; add it"
    assert (
        refused(write("modle: m\ndata: {path: a}\n"))
        == "r.yaml: modle: unknown key; did you mean model? (and 1 more)"
    )


def test_python_is_checked_like_a_file():
    with pytest.raises(ValidationError):
        Recipe(model="m", data=Data(path="a"), trian={})


# Spellings and round trips ------------------------------------------------------------------------------

PYTHON = """\
from ftdocs.recipe import Data, Method, Recipe, Train
recipe = Recipe(model="some-model", data=Data(path="faq.jsonl"), method=Method(rank=4),
                train=Train(learning_rate=1e-3, seed=3), profiles={"smoke": {"train": {"max_steps": 2}}})
"""
YAML = (
    BASE
    + "method: {rank: 4}\ntrain: {learning_rate: 1e-3, seed: 3}\nprofiles: {smoke: {train: {max_steps: 2}}}\n"
)


@pytest.mark.parametrize("profile", [None, *PROFILES])
def test_yaml_json_and_python_give_the_same_recipe(write, profile):
    write(YAML), write(PYTHON, "r.py"), write(YAML, "r.yml")
    # JSON knows 1e-3 as a number, PyYAML as text: both are 0.001 here.
    write(json.dumps({**yaml.safe_load(YAML), "train": {"learning_rate": 1e-3, "seed": 3}}), "r.json")
    recipes = [Recipe.load(f"r.{ending}", profile=profile) for ending in ("yaml", "yml", "json", "py")]
    assert recipes[0].train.learning_rate == 0.001
    assert recipes[0].train.max_steps == (2 if profile == "smoke" else None)
    assert all(recipe == recipes[0] for recipe in recipes)


NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="/~\\."),
    min_size=1,
    max_size=12,
)
RECIPES = st.fixed_dictionaries(
    {
        "model": st.one_of(NAMES, st.sampled_from(["no", "null", "1e-3", "0x10", "2024-01-01", " x ", "a: b", "#c"])),
        "data": st.fixed_dictionaries(
            {"name": NAMES},
            optional={
                "format": st.sampled_from(["text", "label", "messages"]),
                "validation": st.floats(0, 0.5, exclude_max=True),
                "test": st.floats(0, 0.5),
                "group": NAMES,
            },
        ),
    },
    optional={
        "method": st.fixed_dictionaries({"name": st.sampled_from(["full", "lora"])}, optional={
            "targets": st.one_of(NAMES, st.lists(NAMES, max_size=3)), "rank": st.integers(1, 512)}),
        "train": st.fixed_dictionaries({}, optional={
            "learning_rate": st.floats(1e-12, 1e3), "seed": st.integers(0, SEEDS - 1), "packing": st.booleans()}),
        "profiles": st.dictionaries(st.sampled_from(PROFILES), st.fixed_dictionaries({}, optional={
            "model": NAMES, "train": st.fixed_dictionaries({"max_steps": st.one_of(st.none(), st.integers(1, 9))})})),
    },
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=RECIPES)
def test_to_yaml_reads_back_to_the_same_recipe(tmp_path, raw):
    recipe = Recipe(**raw)
    used = recipe.model_copy(update={"method": recipe.method.without_unused()})
    (tmp_path / "r.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert Recipe.load(tmp_path / "r.yaml") == used
    (tmp_path / "r.json").write_text(json.dumps(raw), encoding="utf-8")
    if used == recipe:
        assert Recipe.load(tmp_path / "r.json") == recipe
    else:  # what somebody wrote into a file is not left out without a word
        with pytest.raises(InputError, match=r"method\.(targets|rank): counts only with method.name: lora"):
            Recipe.load(tmp_path / "r.json")


KEYS = st.sampled_from(["model", "data", "train", "seed", "path", "profiles", "gpu", "name", "targets", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=VALUES,
    override=st.text(max_size=12),
    key=st.sampled_from(["train.seed", "data", "model", "x.y.z", "", "."]),
)
def test_whatever_is_given_it_is_a_recipe_or_one_clear_line(tmp_path, raw, override, key):
    (tmp_path / "r.json").write_text(json.dumps(raw), encoding="utf-8")
    (tmp_path / "good.json").write_text('{"model": "m", "data": {"path": "a"}}')
    for name, overrides in (("r.json", []), ("good.json", [f"{key}={override}"])):
        try:
            said = Recipe.load(tmp_path / name, overrides, "gpu").to_yaml()
        except InputError as error:
            said = str(error)
        assert said.startswith("model: ") or len(said.splitlines()) == 1


def test_resolved_recipe_can_be_moved(write):
    """What a run writes down has absolute paths, so it means the same from anywhere."""
    recipe = Recipe.load(write(BASE))
    Path("elsewhere").mkdir()
    copy = write(recipe.to_yaml(), "elsewhere/recipe.yaml")
    assert Recipe.load(copy) == recipe


def test_paths_are_relative_to_the_recipe(write, tmp_path):
    Path("jobs/base").mkdir(parents=True)
    Path("jobs/base/config.json").write_text("{}")
    recipe = Recipe.load(write("model: base\ndata: {path: ../faq.jsonl}\n", "jobs/r.yaml"))
    assert recipe.model == str(tmp_path.resolve() / "jobs/base")
    assert recipe.data.path.resolve() == tmp_path.resolve() / "faq.jsonl"
    hub = Recipe.load(write("model: org/name\ndata: {name: docstrings}\n"))
    assert (hub.model, hub.data.path) == ("org/name", None)
    assert Recipe.load(write("model: ./new\ndata: {name: docstrings}\n")).model == str(
        tmp_path.resolve() / "new"
    )


# Which setting wins -------------------------------------------------------------------------------------


def test_file_then_profile_then_environment_then_set(write, monkeypatch):
    path = write(BASE + "train: {seed: 1, epochs: 5}\nprofiles: {gpu: {train: {seed: 2}}}\n")
    assert Recipe.load(path).train.seed == 1
    assert Recipe.load(path, profile="cpu").train.seed == 1
    assert Recipe.load(path, profile="gpu").train.seed == 2
    monkeypatch.setenv("FTDOCS_TRAIN__SEED", "3")
    assert Recipe.load(path, profile="gpu").train.seed == 3
    assert Recipe.load(path, ["train.seed=4"], "gpu").train.seed == 4
    assert Recipe.load(path, ["train.seed=4", "train.seed=5"], "gpu").train.seed == 5
    assert Recipe.load(path, ["train.seed=4"], "gpu").train.epochs == 5  # what nobody overrides stays


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.learning_rate=1e-3", 0.001),
        ("train.learning_rate=2.5e-4", 0.00025),
        ("train.max_steps=null", None),
        ("train.packing=no", False),
        ("method.targets=[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("method.targets=q_proj", "q_proj"),
        ("model=org/name=x", "org/name=x"),
    ],
)
def test_set_reads_its_value_as_yaml(write, override, value):
    found = Recipe.load(write(BASE), [override])
    for key in override.split("=")[0].split("."):
        found = getattr(found, key)
    assert found == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.sed=1", "--set train.sed: unknown key; did you mean seed?"),
        ("tran.seed=1", "--set tran: unknown key; did you mean train?"),
        ("train.seed=one", "--set train.seed: must be a whole number, got 'one'"),
        ("train.seed.deep=1", "--set train.seed: must be a whole number"),
        ("train=3", "--set train: must hold keys"),
        ("train.seed=[", "--set train.seed: is not a YAML value"),
        ("train.seed=!!python/name:os.system x", "is not a YAML value"),
        ("train.seed", "--set train.seed: wants key=value"),
        ("=3", "wants key=value"),
        ("profiles.gpu.model=m", "--set profiles.gpu.model: set the key itself"),
        ("data.name=docstrings", "--set data: give exactly one of `path`"),
    ],
)
def test_a_wrong_set_is_refused_and_named(write, override, words):
    assert words in refused(write(BASE), [override])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("FTDOCS_TRAIN__SED", "1", "FTDOCS_TRAIN__SED: train.sed: unknown key; did you mean seed?"),
        ("FTDOCS_TRAIN_SEED", "1", "FTDOCS_TRAIN_SEED: train_seed: unknown key; did you mean train.seed?"),
        ("FTDOCS_TRIAN__SEED", "1", "FTDOCS_TRIAN__SEED: trian: unknown key; did you mean train?"),
        (
            "FTDOCS_TRAIN__SEED",
            "one",
            "FTDOCS_TRAIN__SEED: train.seed: must be a whole number, got another value",
        ),
        ("FTDOCS_TRAIN__SEED", "[", "FTDOCS_TRAIN__SEED: train.seed: is not a YAML value"),
        ("FTDOCS_PROFILES__GPU__MODEL", "m", "set the key itself"),
    ],
)
def test_a_wrong_variable_is_refused_and_named(write, monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    assert words in refused(write(BASE))


def test_other_variables_of_the_package_are_no_overrides(write, monkeypatch):
    before = Recipe.load(write(BASE))
    for name in ("FTDOCS_HOME", "FTDOCS_PROFILE", "FTDOCS_RUNS", "FTDOCS_HF_TOKEN", "TRAIN__SEED"):
        monkeypatch.setenv(name, "smoke")
    assert Recipe.load("r.yaml") == before


def test_every_profile_is_checked_whichever_is_chosen(write):
    path = write(BASE + "profiles: {gpu: {method: {rank: 0}}}\n")
    for profile in (None, "smoke", "gpu"):
        assert "profiles.gpu.method.rank: must be greater than or equal to 1" in refused(
            path, profile=profile
        )


def test_merge_leaves_its_arguments_alone():
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(base, nested("a.b", 9)) == {"a": {"b": 9, "c": 2}, "d": 3}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


# Secrets and schema -------------------------------------------------------------------------------------

TOKEN = "hf_thisIsNoRealToken"


@pytest.mark.parametrize("name", ["FTDOCS_HF_TOKEN", "HF_TOKEN"])
def test_a_token_never_shows(write, monkeypatch, name):
    monkeypatch.setenv(name, TOKEN)
    secrets = Secrets.load()
    assert secrets.hf_token.get_secret_value() == TOKEN
    shown = [
        repr(secrets),
        str(secrets),
        f"{secrets.hf_token}",
        secrets.model_dump_json(),
        str(secrets.model_dump()),
    ]
    shown += [yaml.safe_dump(secrets.model_dump(mode="json")), Recipe.load(write(BASE)).to_yaml()]
    assert not [text for text in shown if TOKEN in text]


def test_our_own_token_wins_and_none_is_none(monkeypatch):
    assert Secrets.load().hf_token is None
    monkeypatch.setenv("HF_TOKEN", "other")
    monkeypatch.setenv("FTDOCS_HF_TOKEN", TOKEN)
    assert Secrets.load().hf_token.get_secret_value() == TOKEN


def test_a_token_in_a_recipe_is_refused_without_being_shown(write, monkeypatch):
    message = refused(write(BASE + f"hf_token: {TOKEN}\n"))
    assert "hf_token: unknown key" in message
    assert TOKEN not in message
    monkeypatch.setenv("FTDOCS_TRAIN__HF_TOKEN", TOKEN)
    assert TOKEN not in refused(write(BASE))


def test_the_schema_agrees_with_the_class(write):
    schema = Recipe.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(YAML.replace("1e-3", "1.0e-3")), schema)
    for wrong in (BASE + "trian: {}\n", BASE + "train: {seed: one}\n", "model: m\n"):
        assert refused(write(wrong))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(wrong), schema)
    described = [schema, *schema["$defs"].values()]
    missing = [key for part in described for key, field in part["properties"].items()
               if "description" not in field and "$ref" not in field]  # fmt: skip
    assert not missing


def test_importing_recipes_loads_no_torch():
    code = "import sys, ftdocs.recipe, ftdocs.cli; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
