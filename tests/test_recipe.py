import dataclasses
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tomli_w", reason="writing a recipe needs the train extra")

from edgecnn.bundle.file import read_bundle
from edgecnn.errors import RecipeError
from edgecnn.recipe import (
    Recipe,
    build_recipe,
    keys,
    load_recipe,
    merge,
    nest,
    parse_overrides,
    source_kind,
    to_tables,
    to_toml,
)
from edgecnn.tables import leaves, value_type


def test_a_recipe_that_states_nothing_has_the_documented_values_and_leaves_the_rest_open():
    assert build_recipe({}) == Recipe()
    assert to_tables(build_recipe({})) == {
        "seed": 1,
        "data": {
            "source": "cifar10", "validation_fraction": 0.1, "test_fraction": 0.2, "fit": "crop", "region": [0, 0, 1, 1],
        },
        "network": {"input_range": "centred", "input_zero_point": 0, "options": {}},
        "init": {},
        "train": {
            "optimizer": "adam", "weight_decay": 0.01, "shift": 1, "precision": "float32", "robust": False,
            "class_weights": "auto", "head_only": False,
        },
        "qat": {},
        "stranger": {},
    }  # fmt: skip
    assert to_tables(build_recipe({"teacher": {"run": "x"}}))["teacher"] == {
        "run": "x",
        "temperature": 2.0,
        "weight": 0.5,
    }


def test_unknown_key_names_the_nearest_valid_one():
    with pytest.raises(RecipeError, match=r"train\.epoch\b.*Did you mean 'epochs'"):
        build_recipe({"train": {"epoch": 3}})


def test_a_key_without_its_table_names_the_table():
    with pytest.raises(RecipeError, match=r"train\.epochs or qat\.epochs"):
        build_recipe(parse_overrides(["epochs=3"]))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"train": {"epochs": -1}}, r"train\.epochs .*1 and 10,000.*-1"),
        ({"train": {"epochs": "ten"}}, r"train\.epochs .*'ten'"),
        ({"train": {"epochs": True}}, r"train\.epochs .*True"),
        ({"train": {"learning_rate": float("nan")}}, r"train\.learning_rate .*nan"),
        ({"train": {"optimizer": "adamw"}}, r"train\.optimizer .*adam, sgd.*'adamw'"),
        ({"data": {"fit": "squeeze"}}, r"data\.fit .*crop, letterbox, stretch"),
        ({"network": {"channels": 2}}, r"network\.channels .*1, 3"),
        ({"network": {"options": {"pooling": 2}}}, r"network\.options\.pooling .*2"),
        ({"network": {"options": 3}}, r"network\.options .*3"),
        ({"train": {"learning_rate": 10**400}}, r"train\.learning_rate .*inf"),
        ({"train": 3}, r"recipe\.toml: train .*3"),
        ({"seed": -1}, "seed .*-1"),
    ],
)
def test_bad_values_report_what_was_received_and_expected(tables, message):
    with pytest.raises(RecipeError, match=message):
        build_recipe(tables, "recipe.toml")


def test_limits_are_inclusive_and_nothing_beyond_them_is_accepted():
    """Tries the nearest number beyond each limit. The message gives both limits and the value received."""
    for name, entry in leaves(Recipe):
        if "low" not in entry.metadata:
            continue
        low, high, kind = entry.metadata["low"], entry.metadata["high"], value_type(entry.type)
        assert low >= 0 or name == "network.input_zero_point", "every other number is a count or a size"
        for value in (low, high):
            assert build_recipe(nest([("teacher.run", "runs/x"), (name, kind(value))]))
        below, above = (
            (low - 2, high + 1) if kind is int else (math.nextafter(low, -math.inf), math.nextafter(high, math.inf))
        )
        for value in (below, above):
            ends = [f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (low, high)]
            limits, received = re.escape(f" {' and '.join(ends)}"), re.escape(f" {value!r}")
            named = rf"^recipe\.toml: {re.escape(name)} .*{limits}\b.*{received}$"
            with pytest.raises(RecipeError, match=named):
                build_recipe(nest([("teacher.run", "runs/x"), (name, value)]), "recipe.toml")


def test_whole_numbers_are_valid_floats():
    assert build_recipe({"train": {"learning_rate": 1}}).train.learning_rate == 1.0


@settings(deadline=None)
@given(
    name=st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    rate=st.floats(min_value=1e-8, max_value=100, allow_nan=False),
    options=st.dictionaries(st.sampled_from(["pooling", "activation"]), st.text("abc\"\\'\n", max_size=5)),
)
def test_toml_reads_back_to_an_equal_recipe(tmp_path_factory, name, rate, options):
    recipe = build_recipe({"name": name, "train": {"learning_rate": rate}, "network": {"options": options}})
    path = tmp_path_factory.mktemp("toml") / "recipe.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert to_tables(build_recipe(load_recipe(path))) == to_tables(recipe)


def test_overrides_replace_the_recipes_values_and_keep_the_rest():
    base = {"train": {"epochs": 3, "shift": 1}, "seed": 4}
    recipe = build_recipe(merge(base, parse_overrides(["train.epochs=20", "data.source=my photos"])))
    assert (recipe.train.epochs, recipe.train.shift, recipe.seed) == (20, 1, 4)
    assert recipe.data.source == "my photos"
    assert base == {"train": {"epochs": 3, "shift": 1}, "seed": 4}, "the recipe itself is not changed"
    values = parse_overrides(["a=0", 'b=""', "c=x=y", "d= 7 ", "e= ", "f.g=false", "f.h=[1, 2]", "a=0.0"])
    assert values == {"a": 0.0, "b": "", "c": "x=y", "d": 7, "e": None, "f": {"g": False, "h": [1, 2]}}
    zero = build_recipe(parse_overrides(["train.shift=0", "stranger.rate=0", "qat.epochs=0", "qat.keep=0", "seed=0"]))
    assert (zero.train.shift, zero.stranger.rate, zero.qat.epochs, zero.qat.keep, zero.seed) == (0, 0.0, 0, 0, 0)
    assert to_tables(zero)["stranger"] == {"rate": 0.0}, "0 is not left out"


def test_frigates_input_is_the_default_of_its_sources_only():
    frigate = {"data": {"source": "frigate:/media"}}
    for tables, expected in (
        (frigate, ("stretch", 224, 224, 3)),
        (merge(frigate, {"data": {"fit": "crop"}, "network": {"width": 96}}), ("crop", 224, 96, 3)),
        ({"data": {"source": "frigate"}}, ("crop", None, None, None)),
        ({"data": {"source": "other:/media"}}, ("crop", None, None, None)),
    ):
        recipe = build_recipe(tables)
        network = recipe.network
        assert (recipe.data.fit, network.height, network.width, network.channels) == expected, tables
    assert source_kind("frigate:a:b") == ("frigate", "a:b") and source_kind("c:frigate") == ("", "c:frigate")


@pytest.mark.parametrize("setting", ["epochs", "=3", "train.=3", "seed=1|seed.x=2"])
def test_bad_overrides(setting):
    with pytest.raises(RecipeError):
        build_recipe(parse_overrides(setting.split("|")))


@pytest.mark.parametrize(
    ("content", "message"), [(b"a = ", "--keys"), (b"\xff\xfe", "--keys"), (b'{"seed": 1}', "JSON")]
)
def test_files_that_are_not_toml(tmp_path, content, message):
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_missing_file(tmp_path):
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path / "none.toml")


def test_recipes_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().seed = 2  # type: ignore[misc]


def test_equivalent_input_ranges_give_the_same_code():
    centred, raw = Recipe(), build_recipe({"network": {"input_range": "raw"}})
    assert (centred.input_scale, centred.input_zero_point) == (1 / 128, 0)
    assert (raw.input_scale, raw.input_zero_point) == (1.0, -128)
    for stated, code in (
        ({"input_range": "unit"}, (1 / 255, -128)),
        ({"input_range": "raw", "input_scale": 0.5}, (0.5, 0)),  # an input scale comes with its own zero point, 0 too
        ({"input_range": "raw", "input_scale": 0.5, "input_zero_point": -3}, (0.5, -3)),
        ({"input_range": "raw", "input_zero_point": -3}, (1.0, -128)),
    ):
        recipe = build_recipe({"network": stated})
        assert (recipe.input_scale, recipe.input_zero_point) == code, stated


def test_shipped_recipes_are_valid(root):
    recipes = sorted(root.glob("models/*/recipe.toml"))
    assert len(recipes) >= 3
    for path in recipes:
        assert build_recipe(load_recipe(path), str(path)).name == path.parent.name


def test_every_key_is_listed_with_a_meaning_of_one_line():
    listed = {key.name: key for key in keys()}

    def names(tables, prefix=""):
        for name, value in tables.items():
            if isinstance(value, dict) and name != "options":
                yield from names(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    stated = dict(names(to_tables(Recipe())))
    left_out = {"teacher.temperature": 2.0, "teacher.weight": 0.5, "data.resampling": "box"}
    assert {name: key.default for name, key in listed.items() if key.default is not None} == stated | left_out
    for key in listed.values():
        assert 10 < len(key.meaning) <= 100 and "\n" not in key.meaning and key.meaning.endswith("."), key


def test_listed_limits_are_the_enforced_ones():
    listed = {key.name: key for key in keys()}
    assert (listed["train.epochs"].type, listed["train.epochs"].limits) == ("whole number", "1 to 10,000")
    assert listed["qat.method"].limits == "qat, ptq"
    for names, limits in (
        (("data.validation_fraction", "data.test_fraction"), "0.01 to 0.5"),
        (("train.label_smoothing", "stranger.rate"), "0 to 0.5"),
        (("teacher.weight", "train.weight_decay"), "0 to 1"),
        (("network.height", "network.width"), "1 to 1,024"),
        (("train.folds",), "2 to 20"),
        (("qat.epochs", "qat.keep"), "0 to 10,000"),
        (("train.batch_size", "qat.batch_size"), "1 to 65,536"),
    ):
        assert {listed[name].limits for name in names} == {limits}, names


@pytest.mark.parametrize("depth", [50, 300, 5_000])
def test_values_nested_too_deeply(tmp_path, depth):
    """One clear error at each depth, whether the TOML parser or the checks notice."""
    nested = "[" * depth + "]" * depth
    path = tmp_path / "r.toml"
    path.write_text(f"[train]\nepochs = {nested}\n")
    with pytest.raises(RecipeError, match=r"r\.toml: (its values are nested too deeply|train\.epochs )"):
        build_recipe(load_recipe(path), str(path))
    with pytest.raises(RecipeError, match=r"(its values are nested too deeply|train\.epochs )"):
        build_recipe(parse_overrides([f"train.epochs={nested}"]))


def test_every_shipped_bundle_has_the_recipe_next_to_it(root):
    bundles = sorted(root.glob("models/*/*.edgecnn"))
    assert bundles
    for path in bundles:
        made = flat(to_tables(build_recipe(read_bundle(path).manifest.provenance["recipe"])))
        for name, value in flat(load_recipe(path.with_name("recipe.toml"))).items():
            assert made[name] == (Path(value).name if name in ("data.source", "teacher.run") else value), (path, name)


def flat(tables, prefix=""):
    return {
        name: value
        for key, inner in tables.items()
        for name, value in (
            flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) and inner else {f"{prefix}{key}": inner}
        ).items()
    }


def test_an_empty_setting_leaves_a_key_out():
    base = {"train": {"cutout": 8, "epochs": 3}, "teacher": {"run": "runs/large"}}
    recipe = build_recipe(merge(base, parse_overrides(["train.cutout=", "teacher="])))
    assert (recipe.train.cutout, recipe.teacher, recipe.train.epochs) == (None, None, 3)
