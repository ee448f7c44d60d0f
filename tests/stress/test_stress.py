"""Corruptions, and what remains under them."""

import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
from scipy.stats import binomtest, norm, sem

from edgecnn.data import open_dataset
from edgecnn.errors import SplitError, StressError
from edgecnn.recipe import DataRecipe
from edgecnn.report.table import mean_line
from edgecnn.stress import measure
from edgecnn.stress.corruptions import CORRUPTIONS, LIGHT, conditions, corrupt, from_light, generator, occlusion
from edgecnn.stress.measure import Settings, open_subject, require_passed, stress
from edgecnn.tables import to_json

FEW = ("jpeg", "low-light", "scale")


def silent(*progress):
    """Show nothing."""


@pytest.fixture(scope="module")
def digits(root):
    """The shipped bundle of handwritten digits, opened once."""
    bundle = root / "models" / "digits" / "digits.edgecnn"
    return open_subject(bundle, None, "validation", silent)


@pytest.fixture(scope="module")
def report(digits):
    return stress(digits, Settings(limit=120))


def test_a_shipped_bundle_loses_accuracy_as_expected(report, digits):
    assert {item.corruption for item in report.corruptions} == {name for name, _ in conditions(1)}
    assert report.clean.int8.accuracy > 0.95 and report.complete
    by_name = {item.corruption: item for item in report.corruptions}
    assert by_name["jpeg"].lost < 5 < 15 < by_name["scale"].lost
    assert report.mean_int8.accuracy == pytest.approx(np.mean([item.int8 for item in report.corruptions]))
    assert report.mean_int8.interval[0] < report.mean_int8.accuracy < report.mean_int8.interval[1]
    assert by_name[report.worst].lost == max(item.lost for item in report.corruptions)
    assert report.data.images == 120 and report.data.of == len(digits.images.classes) > 120
    assert all(item.agreement > 0.95 for item in report.corruptions)


def test_the_means_interval_comes_from_the_images_own_means():
    shares = np.array([1, 0.5, 0.25, 1, 0, 0.75, 0.9])
    found = measure.mean(shares)
    low, high = norm.interval(0.95, shares.mean(), sem(shares))
    assert found.accuracy == pytest.approx(4.4 / 7) and found.interval == pytest.approx((low, high))
    assert measure.mean(np.array([1.0, 1.0, 0.9])).interval[1] == 1.0
    assert measure.mean(np.array([0.5])).interval == (0.0, 1.0), "one image proves nothing"


def test_a_condition_holds_the_models_answers_to_these_images(report, digits):
    from edgecnn.stress.corruptions import corrupt, generator

    name, strength = "scale", 3
    images = np.stack(
        [
            corrupt(image, name, strength, generator(1, name, source), "small")
            for image, source in zip(digits.images.images[:120], digits.images.sources[:120], strict=True)
        ]
    )
    right = np.argmax(digits.models["int8"].call(images), axis=1) == digits.images.classes[:120]
    (stressed,) = (item for item in report.corruptions if item.corruption == name)
    assert stressed.strengths[2].int8.accuracy == right.mean()
    assert stressed.strengths[2].value == "1.5" and stressed.unit == "factor"


def test_the_same_seed_gives_the_same_figures_and_another_does_not(digits):
    one, again, other = (stress(digits, Settings(names=FEW, limit=60, seed=seed)) for seed in (1, 1, 2))
    assert one.corruptions == again.corruptions != other.corruptions
    assert not one.complete
    grey = tuple(dict.fromkeys(name for name, _ in conditions(1)))
    assert stress(digits, Settings(names=grey, limit=2)).complete, "all that apply to grey images"


def test_the_json_matches_its_schema(report, schema_of):
    schema = schema_of("stress")
    jsonschema.validate(json.loads(json.dumps(to_json(report))), schema)


def test_the_pass_line(digits):
    low, high = (stress(digits, Settings(names=FEW, limit=60, at_least=line)) for line in (0.1, 0.99))
    require_passed(low)
    with pytest.raises(
        StressError,
        match=r"digits: .*99.00%.*--robust.*--at-least",
    ):
        require_passed(high)


def test_pictures_are_the_images_before_the_resize(tmp_path):
    from PIL import Image

    random = np.random.default_rng(1)
    for label in ("cat", "dog"):
        for number in range(12):
            (tmp_path / label).mkdir(exist_ok=True)
            image = random.integers(0, 256, (60 + number, 80, 3), np.uint8)
            Image.fromarray(image).save(tmp_path / label / f"{number}.png")
    dataset = open_dataset(DataRecipe(source=str(tmp_path)), for_training=False)
    split = dataset.load(("test",), height=16, width=16, channels=3, stage="stress")["test"]
    size = {"channels": 3, "least": (0, 0), "stage": "stress"}
    for source, picture in zip(split.sources, dataset.pictures("test", split.sources, **size), strict=True):
        assert np.array_equal(picture, np.asarray(Image.open(tmp_path / source)))
    with pytest.raises(SplitError, match="'verify' and 'stress'"):
        next(dataset.pictures("test", split.sources, channels=3, least=(0, 0), stage="train"))


def test_the_command_writes_into_the_run_its_page_and_its_card(own_run, edgecnn, monkeypatch):
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    monkeypatch.chdir(own_run.path.parent.parent)
    kept = own_run.file("card.md").read_text()
    result = edgecnn("stress", own_run.path, "--limit", 4, "--json", "--at-least", 0.01)
    assert result.code == 0, result.err
    figures = json.loads(result.out)
    assert figures["data"]["split"] == "validation" and figures["test_uses"] == 0 and figures["passed"]
    assert json.loads(own_run.file("stress-validation.json").read_text()) == figures
    for uses in (1, 2):
        result = edgecnn("stress", own_run.path, "--limit", 2, "--split", "test", "--at-least", 1)
        assert result.code == StressError.exit_code and "--at-least" in result.err
        assert json.loads(own_run.file("stress-test.json").read_text())["test_uses"] == uses
    assert "stress has measured this test split 2 times" in result.out
    page = json.loads(own_run.file("report.json").read_text())["runs"][0]
    assert page["stress"]["data"]["split"] == "test"
    html = own_run.file("report.html").read_text()
    assert "<h3>Under stress</h3>" in html and "Each corruption and strength" in html
    card = own_run.file("card.md").read_text()
    assert "## Under stress" in card and "## Under stress" not in kept and "FAILED" in card
    refused = edgecnn("stress", own_run.path, "--limit", 2, "--corruptions", "jpeg", "--split", "test", "--out", "here")
    assert refused.code == 2 and "counts how often its test split" in refused.err
    assert not (own_run.path.parent.parent / "here").exists()
    part = edgecnn("stress", own_run.path, "--limit", 2, "--corruptions", "jpeg", "--out", "here")
    assert part.code == 0 and "Some corruptions were left out" in part.out
    counted = json.loads((own_run.path.parent.parent / "here" / "stress-validation.json").read_text())["test_uses"]
    assert counted == 2, "validation images do not make the test split's uses forgotten"
    assert json.loads(own_run.file("stress-validation.json").read_text())["complete"]
    shutil.rmtree(own_run.path / "here", ignore_errors=True)


def test_typing_errors_are_reported(edgecnn, root):
    bundle = root / "models" / "digits" / "digits.edgecnn"
    wrong = edgecnn("stress", bundle, "--corruptions", "oclusion")
    assert wrong.code == 3 and "Did you mean 'occlusion'" in wrong.err
    grey = edgecnn("stress", bundle, "--corruptions", "swapped")
    assert grey.code == 3 and "grey images have no colours" in grey.err
    assert edgecnn("stress", bundle, "--split", "train").code == 2
    other = edgecnn("stress", bundle, "--data", "fashion-mnist-is-not-here")
    assert other.code == 3


class Model:
    described = None


def subject(shape, size=(32, 48), channels=3, region=(0, 0, 1, 1), models=("float", "int8"), **dataset):
    height, width = size
    contract = SimpleNamespace(height=height, width=width, channels=channels, region=region)
    return SimpleNamespace(
        name="pets", run=None, split="validation", contract=contract, models=dict.fromkeys(models, Model),
        dataset=SimpleNamespace(name="pets", title="Pets", shape=shape, hashes={"validation": "ab" * 32}, **dataset),
        images=SimpleNamespace(classes=np.zeros(50, int)), robust=False,
    )  # fmt: skip


def test_figures_are_means_over_strengths_and_losses_are_points_of_the_int8_model():
    """Forty of fifty images of class 0: low light with five strengths and swapped colours with one, counted by hand."""
    names = ("low-light", "swapped")
    right = [[39, 35, 30, 25, 20, 15, 37], [38, 34, 31, 24, 19, 12, 10]]
    answers = np.ones((2, 7, 40), np.int64)
    for number, (floats, int8) in enumerate(zip(*right, strict=True)):
        answers[0, number, :floats] = 0  # right on the first images
        answers[1, number, 40 - int8 :] = (
            0  # right on the last ones, so they agree on those that both, or neither, get right
        )
    shares = [[(np.mean(hits[1:6]) + hits[6]) / 2 for hits in (part == 0).T] for part in answers]

    def made(at_least=None, models=("float", "int8"), answers=answers):
        settings = Settings(names=names, limit=40, at_least=at_least)
        return measure.report_of(subject((60, 49, 3), models=models), settings, answers, 1.26)

    report = made()
    light, swap = report.corruptions
    assert (light.corruption, swap.corruption, report.worst, report.costliest) == (*names, "swapped", swap)
    assert (light.float, light.int8, light.agreement) == pytest.approx((125 / 200, 120 / 200, 73 / 200))
    assert (swap.float, swap.int8, swap.agreement) == pytest.approx((37 / 40, 10 / 40, 7 / 40))
    assert (light.lost, swap.lost) == pytest.approx((100 * (38 - 24) / 40, 100 * (38 - 10) / 40))
    assert [(item.strength, item.value) for item in light.strengths] == [
        (1, "100"), (2, "50"), (3, "25"), (4, "12"), (5, "6"),
    ]  # fmt: skip
    assert [(item.strength, item.value) for item in (report.clean, *swap.strengths)] == [(0, ""), (1, "")]
    low, high = binomtest(12, 40).proportion_ci(method="wilson")
    assert (light.strengths[4].int8.accuracy, *light.strengths[4].int8.interval) == pytest.approx((0.3, low, high))
    low, high = binomtest(37, 40).proportion_ci(method="wilson")
    assert (report.clean.agreement, *report.clean.agreement_interval) == pytest.approx((37 / 40, low, high))
    assert report.clean.float.accuracy == 39 / 40 and report.clean.int8.accuracy == 38 / 40
    for found, expected in zip((report.mean_float, report.mean_int8), shares, strict=True):
        reach = norm.ppf(0.975) * sem(expected)
        middle = np.mean(expected)
        assert (found.accuracy, *found.interval) == pytest.approx((middle, middle - reach, middle + reach))
    assert (report.data.images, report.data.of, report.seconds, report.test_uses) == (40, 50, 1.3, 0)
    assert (report.complete, report.kind, report.at_least) == (False, "bundle", None)
    interval = binomtest(38, 40).proportion_ci(method="wilson")
    assert f", 95.00% ({interval.low:.2%} to {interval.high:.2%}) without corruption; of float: " in mean_line(report)
    exact = report.mean_int8.accuracy
    assert [made(line).passed for line in (None, 0.0, exact, exact + 1e-6)] == [True, True, True, False]
    alone = made(models=("int8",), answers=answers[1:])
    assert alone.mean_float is alone.clean.float is alone.clean.agreement is alone.corruptions[0].agreement is None
    assert alone.corruptions[0].int8 == pytest.approx(0.6) and alone.corruptions[0].float is None


def test_which_images_are_small_and_to_what_size_photos_are_reduced():
    sizes = {(48, 30, 1): "small", (48, 48, 3): "small", (49, 20, 3): "photo", (20, 49, 3): "photo"}
    assert {shape: measure.size_class_of(subject(shape)) for shape in sizes} == sizes
    assert measure.largest_side(subject((48, 48, 3), (300, 400))) is None
    cases = [((32, 48), (0, 0, 1, 1), 256), ((224, 300), (0, 0, 1, 1), 300), ((100, 96), (0.5, 0, 0.25, 1), 384)]
    assert [measure.largest_side(subject((49, 20, 3), size, region=region)) for size, region, _ in cases] == [
        side for *_, side in cases
    ]
    random = np.random.default_rng(1)
    pictures = [random.integers(0, 256, (*size, 3), np.uint8) for size in ((300, 512), (512, 200), (257, 900))]
    calls = []

    def read(*given, **more):
        calls.append((given, more["least"], more["stage"]))
        return pictures

    found = list(measure.pictures(subject((49, 20, 3), pictures=read), ("a", "b", "c")))
    assert [picture.shape for picture in found] == [(256, 437, 3), (512, 200, 3), (256, 896, 3)]
    assert calls == [(("validation", ("a", "b", "c")), (256, 256), "stress")] and found[1] is pictures[1]


GOLDEN = Path(__file__).with_name("golden.npz")
SEED = 7
"""From tools/golden_corruptions.py."""

SHARED = [name for name, corruption in CORRUPTIONS.items() if corruption.reference]

OFF_BY_ONE = {"motion": 0.02, "brightness": 0.04}
"""Largest share of values that may be off by one. Both truncate, so a sum in a different order can land on either side of a whole number.
Off by two is never allowed."""

JPEG_LEVELS = 12
"""Other versions of libjpeg round their transforms differently; with the one that made the arrays, JPEG is equal too."""


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return {name: file[name] for name in file.files}


def drawn(channels, height=40, width=56):
    """Return an image with slopes and texture."""
    random = np.random.default_rng(channels)
    slope = np.linspace(40, 200, width)[np.newaxis, :, np.newaxis] + np.zeros((height, width, channels))
    return np.clip(slope + random.normal(0, 8, slope.shape) + 10 * np.arange(channels), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size_class", ["photo", "small"])
@pytest.mark.parametrize("name", SHARED)
def test_it_equals_the_output_of_imagecorruptions(name, size_class, golden):
    image, expected = golden[size_class], golden[f"{size_class}/{CORRUPTIONS[name].reference}"]
    for strength in range(1, 6):
        random = np.random.RandomState(SEED)  # the package uses numpy's legacy generator
        off = np.abs(corrupt(image, name, strength, random, size_class).astype(int) - expected[strength - 1])
        assert off.max() <= (JPEG_LEVELS if name == "jpeg" else 1), (strength, off.max())
        if name != "jpeg":
            assert (off > 0).mean() <= OFF_BY_ONE.get(name, 0.0), (strength, (off > 0).mean())


def test_the_golden_arrays_cover_all_shared_corruptions(golden):
    references = {f"{size}/{CORRUPTIONS[name].reference}" for size in ("photo", "small") for name in SHARED}
    assert set(golden) == references | {"photo", "small"} and len(SHARED) == 3
    assert all(len({array.tobytes() for array in golden[name]}) == 5 for name in references)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(40, 56), (8, 8), (33, 17)])
def test_every_corruption_keeps_shape_and_type_and_depends_only_on_the_generator(channels, shape):
    image = drawn(channels, *shape)
    before = image.copy()
    for size_class in ("photo", "small"):
        for name, strength in conditions(channels):
            first, again = (corrupt(image, name, strength, generator(1, name, "a.jpg"), size_class) for _ in range(2))
            assert first.shape == image.shape and first.dtype == np.uint8, name
            assert np.array_equal(first, again), name
    assert np.array_equal(image, before)


def test_each_strength_is_further_from_the_image_than_the_one_before(golden):
    image = golden["photo"]
    for name, corruption in CORRUPTIONS.items():
        if name == "scale":
            continue  # a different place in the image is not farther away, pixel by pixel
        distances = [
            float(np.abs(corrupt(image, name, strength, generator(1, name, "a"), "photo").astype(int) - image).mean())
            for strength in range(1, len(corruption.photo) + 1)
        ]
        steps = itertools.pairwise(distances)
        assert distances[0] > 0.1 and all(after > 0.95 * before for before, after in steps), (name, distances)
        assert len(distances) == 1 or distances[-1] > 1.2 * distances[0], (name, distances)


def test_grey_images_have_no_colours_to_change():
    grey, colour = ({name for name, _ in conditions(channels)} for channels in (1, 3))
    assert colour == set(CORRUPTIONS) and colour - grey == {"swapped"}
    assert [item for item in conditions(3) if item[0] == "swapped"] == [("swapped", 1)]


def test_exposure_is_in_stops_of_light():
    image = np.full((4, 4, 3), 200, np.uint8)
    darker = corrupt(image, "underexposure", 1, generator(1, "underexposure", "a"), "photo")
    assert LIGHT[darker].mean() == pytest.approx(LIGHT[image].mean() / 2, rel=0.02)
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert np.array_equal(from_light(LIGHT[every]), every)


def test_low_light_is_noisier_with_less_light():
    image = np.full((64, 64, 3), 180, np.uint8)
    deviations = [corrupt(image, "low-light", n, generator(1, "low-light", "a"), "photo").std() for n in range(1, 6)]
    assert deviations == sorted(deviations) and deviations[4] > 3 * deviations[0]


def test_scale_moves_closer_and_farther():
    image = np.zeros((80, 120, 1), np.uint8)
    image[34:46, 50:70] = 255  # 12 rows and 20 columns about the centre
    sides = set()
    for number in range(20):
        rows, columns, _ = np.nonzero(corrupt(image, "scale", 5, generator(1, "scale", str(number)), "photo") > 127)
        near = (rows > 24) & (rows < 56) & (columns > 35) & (columns < 85)  # and not the mirror images
        rows, columns = rows[near], columns[near]
        assert (rows.mean(), columns.mean()) == pytest.approx((39.5, 59.5), abs=0.6), "the centre stays"
        sides.add((int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1))
    assert sides == {(6, 10), (24, 40)}


def test_occlusion_covers_its_share_within_the_image():
    image = drawn(3, 50, 80)
    for strength, share in enumerate(CORRUPTIONS["occlusion"].photo, 1):
        covered = corrupt(image, "occlusion", strength, generator(1, "occlusion", "b"), "photo")
        colours, counts = np.unique(covered.reshape(-1, 3), axis=0, return_counts=True)
        assert counts.max() == pytest.approx(share * 4000, rel=0.1)
        rows, columns = np.nonzero((covered == colours[counts.argmax()]).all(axis=2))
        sides = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert sides == pytest.approx((50 * share**0.5, 80 * share**0.5), abs=1), "as wide as the image, in proportion"


def test_occlusion_is_anywhere_in_the_image():
    """A quarter of 20 by 40 pixels is 10 by 20, so the corner is at 0 to 10 and at 0 to 20."""
    corners = []
    for number in range(200):
        covered = occlusion(np.full((20, 40, 1), 255, np.uint8), 0.25, generator(1, "occlusion", str(number)))
        rows, columns, _ = np.nonzero(covered < 255)
        corners.append((rows.min(), columns.min()) if len(rows) else (0, 0))
    tops, lefts = np.array(corners).T
    assert set(tops.tolist()) == set(range(11)) and set(lefts.tolist()) == set(range(21))
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.2
