"""What a run begins with: trained weights, and a backbone's file."""

import csv
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from sklearn.datasets import load_sample_images

from edgecnn.data import open_dataset
from edgecnn.errors import NetworkError, OutputExistsError, RunError
from edgecnn.evaluate.answers import contract_of, device_model
from edgecnn.export import tflite
from edgecnn.export.flatbuffer import read
from edgecnn.files import sha256
from edgecnn.networks import build_network
from edgecnn.networks.blocks import RUNGS
from edgecnn.networks.keras import keras
from edgecnn.networks.predict import even_depthwise, model_bytes, model_from_bytes, predictor, real_input
from edgecnn.networks.pretrained import SOURCES, load_weights, read_weights, source_of, tuned_variables
from edgecnn.recipe import build_recipe
from edgecnn.report.card import origin_lines
from edgecnn.run_info import StartedFrom
from edgecnn.runs import (
    FLOAT_MODEL,
    HISTORY,
    INIT_MODEL,
    NETWORK_FILE,
    QAT_MODEL,
    Run,
    create_run,
    start_from,
    trained_run,
)
from edgecnn.stages.bundle import bundle_path, bundle_stage
from edgecnn.stages.pipeline import resume_or_create
from edgecnn.train.loop import Batches
from edgecnn.train.origin import fit_head, open_start
from edgecnn.train.phases import fake_quantize
from edgecnn.train.ranges import calibrate, measure, round_in_turn, round_kernels, widen
from edgecnn.train.settle import settle
from edgecnn.train.train import train


class Stop(KeyboardInterrupt):
    """An interruption at a given moment."""


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def recipe_from(source, **tables):
    base = {
        "data": {"source": "digits"},
        "init": {"source": str(source)},
        "train": {"epochs": 2, "batch_size": 64},
        "qat": {"method": "ptq"},
    }
    for table, values in tables.items():
        base[table] = base.get(table, {}) | values
    return build_recipe(start_from(base))


def trained(recipe, path, stop_after=None, between=lambda: None):
    """Train, interrupted after the (phase, epoch) given and resumed."""
    dataset = open_dataset(recipe.data)
    run = create_run(recipe, path)

    def report(progress):
        if (progress.phase, progress.epoch) == stop_after and progress.validation_accuracy is not None:
            raise Stop

    if stop_after:
        with pytest.raises(Stop):
            train(settle(recipe, dataset), dataset, run, report)
        between()
    train(settle(recipe, dataset), dataset, run, lambda progress: None)
    return run


@pytest.fixture(scope="module")
def started(tmp_path_factory, finished_run):
    """A complete run that started from the finished one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("init"))
        return trained(recipe_from(finished_run.path), tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.guard
@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_run_records_what_it_started_from_and_trains_at_a_lower_rate(started, finished_run):
    rows = list(csv.DictReader(started.file(HISTORY).open()))
    assert [(row["phase"], row["epoch"]) for row in rows] == [("float", "1"), ("float", "2")]
    assert started.info.init == StartedFrom(run="tiny", sha256=sha256(finished_run.file(FLOAT_MODEL).read_bytes()))
    assert started.public_recipe.init.source == "tiny"
    assert max(float(row["learning_rate"]) for row in rows) <= 0.0005


@pytest.mark.guard
@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_it_begins_at_the_other_runs_end(started):
    first, *_ = csv.DictReader(started.file(HISTORY).open())
    assert float(first["validation_accuracy"]) > 0.8, "after one epoch, on a body that knows digits; chance is 0.1"


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_the_body_is_kept_and_the_head_fitted(finished_run):
    recipe = recipe_from(finished_run.path)
    split = open_dataset(recipe.data).load(("train",), height=8, width=8, channels=1, stage="train")["train"]
    start = open_start(recipe, None)
    model = build_network(recipe.network.name, 8, 8, 1, 10)
    start.give(model)
    drawn = model.get_weights()
    given = model_from_bytes(finished_run.file(FLOAT_MODEL).read_bytes()).get_weights()
    same = [np.array_equal(one, other) for one, other in zip(drawn, given, strict=True)]
    assert all(same[:-2]) and not same[-2], "the body is kept, the head is initialised again"
    heard = []
    fit_head(model, recipe, split.images, split.classes, progress=lambda *progress: heard.append(progress))
    changed = [not np.array_equal(one, other) for one, other in zip(drawn, model.get_weights(), strict=True)]
    assert changed == [False] * (len(changed) - 2) + [True, True]
    logits = predictor(model, recipe.input_scale, recipe.input_zero_point)(split.images)
    assert np.mean(np.argmax(logits, axis=1) == split.classes) > 0.9
    assert heard[-1] == ("computing features", len(split.images), len(split.images))


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_feature_that_hardly_varies_gets_no_large_weight():
    random = np.random.default_rng(2)
    classes = np.repeat(np.arange(2), 6)
    images = random.integers(0, 256, (12, 2, 2, 3), np.uint8)
    images[classes == 1, :, :, 0] //= 2
    images[..., 2] = 128
    images[:, 0, 0, 2] += classes.astype(np.uint8)  # a quarter of a code apart, which also separates these few
    inputs = keras.Input((2, 2, 3))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(inputs)))
    fit_head(model, build_recipe({}), images, classes)
    of_each = np.abs(model.get_weights()[0]).max(axis=1)
    assert of_each[2] < of_each[0]


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("counts", [(30, 20), (12, 1, 7), (40, 25, 2), (1, 1)])
def test_a_head_is_fitted_to_classes_of_any_size(counts):
    random = np.random.default_rng(1)
    classes = np.repeat(np.arange(len(counts)), counts)
    images = random.integers(0, 40, (len(classes), 2, 2, 3), np.uint8)
    for label in range(len(counts)):
        images[classes == label, :, :, label] += 200
    inputs = keras.Input((2, 2, 3))
    model = keras.Model(inputs, keras.layers.Dense(len(counts))(keras.layers.GlobalAveragePooling2D()(inputs)))
    fit_head(model, build_recipe({}), images, classes)
    logits = predictor(model, 1 / 128, 0)(images)
    assert np.mean(np.argmax(logits, axis=1) == classes) > 0.8


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.guard
@pytest.mark.parametrize("stop_after", [("float", 1), ("float", 2)])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(tmp_path, started, finished_run, stop_after):
    copy = tmp_path / "tiny"
    shutil.copytree(finished_run.path, copy)
    # the original is gone when the run resumes
    resumed = trained(recipe_from(copy), tmp_path / "resumed", stop_after, lambda: shutil.rmtree(copy))
    mine, others = (model_from_bytes(run.read(FLOAT_MODEL, "train")).get_weights() for run in (resumed, started))
    assert all(np.array_equal(one, other) for one, other in zip(mine, others, strict=True))


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_network_and_input_are_inherited_unless_given(finished_run):
    recipe = recipe_from(finished_run.path)
    assert (recipe.network.name, recipe.network.height, recipe.network.channels) == ("article", 8, 1)
    assert recipe_from(finished_run.path, network={"height": 16}).network.height == 16
    init = {"source": str(finished_run.path)}
    assert "options" in start_from({"init": init, "network": {"height": 16}})["network"], "those of the run"
    assert "options" not in start_from({"init": init, "network": {"name": "resnet8"}})["network"]
    assert start_from({"seed": 2}) == {"seed": 2}


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_other_bodies_and_scales_are_refused(finished_run):
    other = recipe_from(finished_run.path, network={"name": "resnet8"})
    with pytest.raises(
        NetworkError, match=r"cannot start from that network: its layer conv2d.* has weights .*Use that network's name"
    ):
        open_start(other, None).give(build_network("resnet8", 8, 8, 1, 10))
    with pytest.raises(RunError, match=r"scale 0\.0078125 and zero point 0.* scale 1 and zero point -128"):
        open_start(recipe_from(finished_run.path, network={"input_range": "raw"}), None)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_source_without_weights_names_what_to_give_instead(own_run, tiny_recipe, tmp_path):
    with pytest.raises(RunError, match=f"^{tmp_path} "):
        trained_run(tmp_path)
    assert trained_run(own_run.file(FLOAT_MODEL)).path == own_run.path
    # a bundle and a recipe stand for their run below runs/
    assert trained_run(bundle_path(own_run)).path == Run(own_run.path.relative_to(tmp_path)).path
    assert trained_run(tiny_recipe).path == Run(own_run.path.relative_to(tmp_path)).path, "which leaves keys open"
    bundle = shutil.copy(bundle_path(own_run), tmp_path / "tiny.edgecnn")
    recipe = shutil.copy(own_run.file("recipe.toml"), tmp_path / "tiny.toml")
    own_run.file(FLOAT_MODEL).unlink()
    with pytest.raises(RunError, match=r"float\.h5 yet\. First: edgecnn train --resume --out"):
        trained_run(own_run.path)
    for path in (bundle, recipe):
        with pytest.raises(RunError, match=r"cannot start from .*\nedgecnn train .*\nthen .*--init runs/body"):
            trained_run(path)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_bundle_stands_for_its_run_whatever_its_file_name(own_run, tmp_path):
    recipe = own_run.file("recipe.toml")
    recipe.write_text(recipe.read_text().replace('name = "tiny"', 'name = ""', 1))
    bundle, _ = bundle_stage(Run(own_run.path), tmp_path / "other.edgecnn")
    assert trained_run(bundle).path == Run(own_run.path.relative_to(tmp_path)).path


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits.edgecnn", "recipe.toml"])
def test_the_advice_for_a_shipped_model_works(edgecnn, root, name):
    """Runs the message's commands unchanged, except with fewer epochs and quantization after training."""
    few = ("--epochs", "1", "--batch-size", "256", "--set", "qat.method=ptq")
    start = ("train", "--data", "digits", *few)
    refused = edgecnn(*start, "--init", root / "models" / "digits" / name)
    assert refused.code == RunError.exit_code
    _, first, then = refused.err[refused.err.index("edgecnn: error") :].splitlines()
    result = edgecnn(*shlex.split(first)[1:], *few)
    assert result.code == 0, result.err
    result = edgecnn(*start, *shlex.split(then)[-2:])
    assert result.code == 0, result.err


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_run_is_not_replaced_by_one_that_starts_from_it(own_run):
    with pytest.raises(OutputExistsError, match="which the new run needs"):
        create_run(recipe_from(own_run.path), own_run.path, force=True)
    assert own_run.file(FLOAT_MODEL).exists()


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.slow
def test_a_changed_source_makes_a_different_run(own_run, tmp_path):
    asked = recipe_from(own_run.path, train={"epochs": 1}, qat={"epochs": 0})
    run = trained(asked, tmp_path / "runs" / "new")
    dataset = open_dataset(asked.data)
    recipe = settle(asked, dataset)
    assert resume_or_create(asked, recipe, dataset, run.path, force=False).path == run.path
    own_run.file(FLOAT_MODEL).write_bytes(own_run.file(FLOAT_MODEL).read_bytes() + b"\0")
    with pytest.raises(OutputExistsError, match="differs in the weights of"):
        resume_or_create(asked, recipe, dataset, run.path, force=False)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.slow
def test_a_users_network_travels_with_the_run(edgecnn, tmp_path, tiny_network):
    file, source = tmp_path / "net.py", Path(tiny_network.rpartition(":")[0]).read_text()
    file.write_text(source)
    settings = ("--epochs", "1", "--qat-epochs", "0", "--batch-size", "256", "--set", "qat.rounding=nearest")
    result = edgecnn("train", "--data", "digits", "--network", "net.py:build", *settings, "--json")
    assert result.code == 0, result.err
    run = Run(tmp_path / "runs" / "digits-net-build")
    assert json.loads(result.out)["network"] == {"file": "net.py:build", "sha256": sha256(source.encode())}
    assert run.file(NETWORK_FILE).read_text() == source
    assert run.public_recipe.network.name == "net.py:build"
    file.unlink()
    run.file("checkpoint.npz").unlink()  # as if it had been interrupted in its first epoch
    assert edgecnn("train", "--resume", "--out", run.path).code == 0
    assert edgecnn("export", run.path, "--format", "tflite", "--int8").code == 0
    # start from a user's network, using the copy in its run
    result = edgecnn("train", "--data", "digits", "--init", run.path, *settings, "--out", "second")
    assert result.code == 0, result.err
    assert Run(tmp_path / "second").file(INIT_MODEL).read_bytes() == run.file(FLOAT_MODEL).read_bytes()


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_users_network_that_cannot_be_quantized_leaves_no_run(edgecnn, tmp_path, tiny_network):
    source = Path(tiny_network.rpartition(":")[0]).read_text()
    (tmp_path / "net.py").write_text(source.replace("layers.ReLU()(", "layers.Rescaling(2.0, name='twice')("))
    result = edgecnn("train", "--data", "digits", "--network", "net.py:build")
    assert result.code == NetworkError.exit_code
    assert "twice (Rescaling)" in result.err
    assert not (tmp_path / "runs").exists()


NETWORK = "efficientnet_lite0_150kb"


@pytest.fixture(scope="module")
def short():
    """Cut the network after four blocks, the fourth of which has the larger kernel: it is built in two thirds of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RUNGS, NETWORK, 4)
        yield


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A run on digits with 32 pixels and one epoch, the int8 file of its fake-quantized model, and that model."""
    recipe = build_recipe(
        {
            "data": {"source": "digits", "test_fraction": 0.5, "validation_fraction": 0.3},
            "network": {"name": NETWORK, "height": 32, "width": 32},
            "train": {
                "epochs": 1,
                "augment": "photo",
                "flip": "no",
                "batch_size": 64,
                "schedule": "one-cycle",
                "learning_rate": 0.0001,
            },
            "qat": {"epochs": 0, "rounding": "nearest"},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tuned"))
        run = create_run(recipe, tmp_path_factory.mktemp("runs") / "run")
        dataset = open_dataset(recipe.data)
        train(settle(recipe, dataset), dataset, run, lambda progress: None)
    model = model_from_bytes(run.read(QAT_MODEL, "train"))
    return run, tflite.int8(model), model


@pytest.fixture(scope="module")
def pretrained():
    model = build_network(NETWORK, 32, 32, 1, 10)
    load_weights(model, read_weights(SOURCES[0]))
    return model


@pytest.mark.usefixtures("short")
def test_it_learns_from_few_images(tuned):
    run, *_ = tuned
    assert run.info.int8.validation.calibrated.agreement > 0.9
    assert run.info.int8.validation.float.accuracy > 0.7, "with ten classes, after one epoch on a few hundred images"


@pytest.mark.usefixtures("short")
def test_run_and_card_name_the_weights_and_their_licence(tuned):
    run, *_ = tuned
    init = run.info.init
    assert (init.licence, init.sha256) == ("Apache-2.0", SOURCES[0].sha256)
    assert f"Started from {init.run}, licence Apache-2.0." in origin_lines(run.info)


@pytest.mark.usefixtures("short")
def test_all_layers_of_a_small_cut_learn_and_all_statistics_stay(tuned, pretrained):
    trained = model_from_bytes(tuned[0].read(FLOAT_MODEL, "train"))
    for mine, given in zip(trained.layers, pretrained.layers, strict=True):
        for one, other in zip(mine.weights, given.weights, strict=True):
            assert np.array_equal(one.numpy(), other.numpy()) == ("moving" in one.name), one.name


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_lite0_1200kb",
        *(pytest.param(f"efficientnet_{name}", marks=pytest.mark.slow) for name in ("lite0_4000kb", "lite2_1800kb")),
    ],
)
def test_early_layers_of_a_large_network_stay(name):
    source, model = source_of(name), build_network(name, 32, 32, 1, 10)
    names = [layer.name for layer in model.layers]
    later = model.layers[names.index(source.first_tuned) :]
    expected = [variable.name for layer in later for variable in layer.trainable_variables]
    assert [variable.name for variable in tuned_variables(model, source, name)] == expected
    assert 0.5 < len(expected) / len(model.trainable_variables) < 1


@pytest.mark.usefixtures("short")
def test_int8_is_int8_throughout_with_one_scale_per_channel(tuned):
    graph = read(tuned[1])
    assert tflite.float_tensors(tuned[1]) == []
    depthwise = [operator for operator in graph.operators if operator.name == "DEPTHWISE_CONV_2D"]
    assert len(depthwise) == 4
    for operator in depthwise:
        kernel = operator.inputs[1]
        assert len(kernel.scale) == kernel.shape[-1] > 1 and len(set(kernel.scale)) > 1


@pytest.mark.usefixtures("short")
def test_no_bias_is_clipped_to_int32(tuned):
    graph = read(tuned[1])
    biases = [
        np.frombuffer(operator.inputs[2].data, np.int32).astype(np.int64)
        for operator in graph.operators
        if "CONV_2D" in operator.name
    ]
    assert len(biases) == 12
    assert max(np.abs(bias).max() for bias in biases) < 2**30


def reaches(layer):
    """The largest weight of each channel of a depthwise layer, without channels of zeros."""
    kernel = next(values for values in layer.get_weights() if values.ndim == 4)
    reach = np.abs(kernel).max(axis=(0, 1, 3))
    return reach[reach > 0]


@pytest.mark.usefixtures("short")
def test_kernels_of_even_size_answer_as_before_and_are_quantized(pretrained, tuned):
    even = model_from_bytes(model_bytes(pretrained))
    even_depthwise(even)
    images = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 1), np.uint8)
    before, after = (predictor(model, 1 / 128, 0)(images) for model in (pretrained, even))
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())
    *_, quantized = tuned
    found = [
        reaches(layer) for model in (even, quantized) for layer in model.layers if layer.name.endswith("_depthwise")
    ]
    assert len(found) == 8
    np.testing.assert_allclose(np.concatenate(found), 1, rtol=1e-6)


def ends_of(student):
    """The ends of each activation's range, by the layer's name."""
    found = {}
    for layer in student.layers:
        ends = [one.numpy() for one in layer.variables if "post_activation_m" in one.name or "output_m" in one.name]
        if len(ends) == 2:
            found[layer.name] = np.sort(ends)
    return found


@pytest.mark.usefixtures("short")
@pytest.mark.guard
def test_ranges_from_the_float_model_are_those_that_calibration_would_find_or_narrower(pretrained):
    """The student's own activations differ from the float model's by its rounding only."""
    recipe = build_recipe({})
    images = np.random.default_rng(1).integers(0, 256, (40, 32, 32, 1), np.uint8)
    before = pretrained.get_weights()
    found, expected = fake_quantize(pretrained, 1 / 128, 0), fake_quantize(pretrained, 1 / 128, 0)
    assert all(map(np.array_equal, before, pretrained.get_weights())), "the float model stays as it is"
    highest = measure(found, pretrained, recipe, [images])
    calibrate(
        expected, recipe, Batches(images=images, classes=np.zeros(40, int), batch_size=40, seed=1, flip=False, shift=0)
    )
    narrower = []
    for name, theirs in ends_of(expected).items():
        reach, mine = max(np.abs(theirs).max(), 0.1), ends_of(found)[name]
        share = 1 if theirs[0] == 0 else mine[1] / theirs[1]
        np.testing.assert_allclose(mine, share * theirs, atol=0.1 * reach, err_msg=name)
        narrower.append(share)
        if name.endswith("_relu"):
            assert highest[name.removeprefix("quant_")].max() == pytest.approx(mine[1])
    assert len(narrower) == 15 and 0.45 < min(narrower) < 0.95 and max(narrower) < 1.05
    kernels = [
        [one for one in model.variables if one.name.rpartition("/")[2] == "kernel_max:0"] for model in (found, expected)
    ]
    for mine, theirs in zip(*kernels, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=1e-5)


def crops(side, count=40):
    photos = [image for image in load_sample_images().images for _ in range(count // 2)]
    random = np.random.default_rng(1)
    corners = [random.integers(0, np.array(photo.shape[:2]) - side) for photo in photos]
    return np.stack(
        [photo[top : top + side, left : left + side] for photo, (top, left) in zip(photos, corners, strict=True)]
    )


@pytest.mark.usefixtures("short")
@pytest.mark.guard
def test_each_way_of_rounding_and_wider_channels_bring_the_features_nearer_to_the_float_models():
    """Rounded in turn, the mean of each feature does not move. Grey photos of low contrast hardly reach the upper part of any range."""
    images = (118 + crops(64) // 12).astype(np.uint8)
    recipe = build_recipe({})
    model = build_network(NETWORK, 64, 64, 3, 2)
    load_weights(model, read_weights(SOURCES[0]))
    body = keras.Model(model.inputs, model.layers[-1].input)
    expected = predictor(body, 1 / 128, 0)(images)

    def error(*steps):
        student = fake_quantize(model, 1 / 128, 0)
        highest = measure(student, model, recipe, [images])
        factors = widen(student, highest) if "widen" in steps else {}
        if "round" in steps:
            round_kernels(student, images, 1 / 128, 0, 1)
        if "in turn" in steps:
            round_in_turn(student, model, recipe, images, factors)
        found = predictor(keras.Model(student.input, student.layers[-1].input), 1 / 128, 0)(images) - expected
        return float(found.std(axis=0).mean()), float(np.abs(found.mean(axis=0)).mean())

    nearest, rounded, in_turn, best = error(), error("round"), error("in turn"), error("widen", "in turn")
    assert in_turn[0] < 0.8 * nearest[0] and in_turn[1] < 0.3 * min(nearest[1], rounded[1])
    assert best[0] < 0.8 * in_turn[0] and best[1] < 0.3 * min(nearest[1], rounded[1])


@pytest.mark.usefixtures("short")
def test_wider_channels_change_no_answer_within_their_measured_range(pretrained):
    images = np.random.default_rng(1).integers(0, 256, (40, 32, 32, 1), np.uint8)
    recipe, student = build_recipe({}), fake_quantize(pretrained, 1 / 128, 0)
    highest = measure(student, pretrained, recipe, [images])
    before = student.get_weights()
    factors = widen(student, highest)
    assert len(factors) == 4 and all(np.all((one >= 1) & (one <= 32)) for one in factors.values())
    for relu in (layer for layer in student.layers if layer.name.endswith("_relu")):
        behind = relu.outbound_nodes[0].outbound_layer.name.removeprefix("quant_")
        if behind in factors:
            reached = (
                keras.Model(student.input, relu.output)(real_input(images, 1 / 128, 0)).numpy().max(axis=(0, 1, 2))
            )
            low = factors[behind] == 32
            np.testing.assert_allclose(reached[~low], ends_of(student)[relu.name][1], rtol=0.2)
    found = predictor(student, 1 / 128, 0)(images)
    student.set_weights(before)
    unlike = found - predictor(student, 1 / 128, 0)(images)
    assert 0 < np.abs(unlike).max() < 0.2 * found.std()


@pytest.mark.usefixtures("short")
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["efficientnet_lite0_1200kb", "efficientnet_lite2_1800kb", "efficientnet_lite2_5600kb"]
)
def test_a_rung_becomes_int8_with_a_tenth_of_the_spread_as_error(name):
    """ImageNet weights and a random head on crops of photos: the classes of such a head are within a few steps of each other."""
    images = crops(96, 64)
    recipe = build_recipe({})
    keras.utils.set_random_seed(2)
    model = build_network(name, 96, 96, 3, 10)
    load_weights(model, read_weights(source_of(name)))
    fake = fake_quantize(model, recipe.input_scale, recipe.input_zero_point)
    batches = Batches(images=images, classes=np.zeros(64, np.int64), batch_size=32, seed=1, flip=False, shift=0)
    calibrate(fake, recipe, batches)
    expected = predictor(fake, recipe.input_scale, recipe.input_zero_point)(images)
    int8 = device_model(tflite.int8(fake), "tflite", contract_of(recipe, images.shape[1:]))
    error = np.sqrt(np.mean((int8.logits(images) - expected) ** 2))
    assert error < 0.1 * expected.std(axis=0).mean()
