"""The region: the same pixels on every path, from the fraction to the bundle that carries it and the camera that uses it."""

import dataclasses
import io
import json
import tomllib
import zipfile

import numpy as np
import pytest
from PIL import Image

from edgecnn import images
from edgecnn.bundle.file import read_bundle, write_bundle
from edgecnn.bundle.manifest import Manifest
from edgecnn.errors import BundleError, RecipeError
from edgecnn.pixels import FITS, ROTATIONS, resize
from edgecnn.recipe import build_recipe, parse_overrides, to_toml
from edgecnn.region import WHOLE, is_region, pixel_box, region_text, whole_size
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.engines import engines_for, is_installed

needs_engine = pytest.mark.skipif(
    not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed"
)

REGION = (0.55, 0.1, 0.31, 0.7)
TEXT = "0.55,0.1,0.31,0.7"


def noise(width=64, height=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(pixels, format_="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_, **options)
    return buffer.getvalue()


def cut_by_hand(pixels, region=REGION):
    """Return the region of upright pixels."""
    left, top, right, bottom = pixel_box(pixels.shape[1::-1], region)
    return pixels[top:bottom, left:right]


class TestPixels:
    def test_boxes(self):
        assert pixel_box((640, 480), WHOLE) == (0, 0, 640, 480)
        assert pixel_box((640, 480), (0.5, 0.25, 0.5, 0.5)) == (320, 120, 640, 360)
        assert pixel_box((3, 3), (0.99, 0.0, 0.01, 1e-9)) == (2, 0, 3, 1), "at least one pixel"
        assert pixel_box((7, 7), (0.7, 0.7, 0.3, 0.3))[2:] == (7, 7)

    @pytest.mark.parametrize("rotation", ROTATIONS)
    @pytest.mark.parametrize("fit", FITS)
    def test_the_region_applies_to_the_rotated_frame(self, rotation, fit):
        for width, height in ((64, 48), (51, 77)):
            frame = noise(width, height)
            upright = np.ascontiguousarray(np.rot90(frame, -rotation // 90))
            left, top, right, bottom = pixel_box(frame.shape[1::-1], REGION, rotation)
            part = np.rot90(frame[top:bottom, left:right], -rotation // 90)
            assert np.array_equal(part, cut_by_hand(upright))
            found = resize(frame, 10, 12, fit, rotation, REGION)
            assert found.shape == (10, 12, 3)
            assert np.array_equal(
                found, resize(np.ascontiguousarray(frame[top:bottom, left:right]), 10, 12, fit, rotation)
            )
            assert np.array_equal(found, resize(Image.fromarray(frame), 10, 12, fit, rotation, REGION))

    def test_the_whole_image_is_not_a_region(self):
        frame = noise()
        assert np.array_equal(resize(frame, 10, 12, "crop", 90), resize(frame, 10, 12, "crop", 90, WHOLE))

    @pytest.mark.parametrize("orientation", [1, 3, 6, 8])
    def test_a_file_is_cut_after_exif_has_turned_it(self, orientation):
        upright = noise()
        turn = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]
        exif = Image.Exif()
        exif[images.EXIF_ORIENTATION] = orientation
        data = encoded(np.ascontiguousarray(np.rot90(upright, turn)), exif=exif.tobytes())
        assert np.array_equal(
            images.load(data, 9, 8, 3, "stretch", REGION), resize(cut_by_hand(upright), 9, 8, "stretch")
        )


class TestReducedDecoding:
    def test_the_size_of_the_whole_image(self):
        assert whole_size(32, 48) == (32, 48)
        assert whole_size(32, 48, (0.5, 0.0, 0.5, 0.25)) == (128, 96)
        assert whole_size(32, 48, (0.5, 0.0, 0.5, 0.25), 90) == (96, 128)

    @pytest.mark.parametrize("rotation", ROTATIONS)
    @pytest.mark.parametrize("region", [(0.5, 0.5, 0.25, 0.25), (0.1, 0.0, 0.9, 0.2), (0.0, 0.25, 0.125, 0.75)])
    def test_no_detail_of_a_region_is_lost(self, region, rotation):
        """Blotches the size of one output pixel: at the whole frame's decoding scale they would blur together."""
        coarse = np.random.default_rng(1).integers(0, 256, (240, 320, 3), np.uint8)
        upright = np.asarray(Image.fromarray(coarse).resize((1280, 960), Image.Resampling.NEAREST))
        data = encoded(np.ascontiguousarray(np.rot90(upright, rotation // 90)), "jpeg", quality=95, subsampling=0)
        expected = cut_by_hand(coarse, region).astype(float)
        height, width = expected.shape[:2]

        def error(least):
            found = resize(images.decode(data, 3, least), height, width, "stretch", rotation, region)
            return np.sqrt(((found - expected) ** 2).mean()) / expected.std()

        assert error(whole_size(height, width, region, rotation)) < 0.25
        if max(region[2:]) < 0.5:
            assert error(whole_size(height, width, WHOLE, rotation)) > 0.5

    def test_it_still_decodes_reduced_when_possible(self):
        data = encoded(noise(1280, 960), "jpeg")
        assert images.decode(data, 3, whole_size(32, 32, (0.0, 0.0, 0.5, 0.5))).size == (320, 240)
        assert images.decode(data, 3, whole_size(32, 32)).size == (160, 120)


WRONG = (
    "1,0,0.5,1",
    "0.6,0,0.5,1",
    "0,0,0,1",
    "-0.1,0,0.5,1",
    "0,0,1",
    "0,0,1,1,1",
    "a,b,c,d",
    "nan,0,1,1",
    "inf,0,1,1",
    "",
)


class TestValues:
    def test_valid_regions(self):
        assert (
            is_region(WHOLE)
            and is_region(REGION)
            and is_region((0.7, 0.1, 0.3, 0.9))
            and is_region((0.9, 0.9, 0.1, 0.1))
        )

    @pytest.mark.parametrize("text", WRONG)
    @pytest.mark.parametrize("arguments", [("classify", "a.png"), ("explain", "a.png"), ("train", "--data", "digits")])
    def test_an_invalid_region_is_a_usage_error(self, edgecnn, arguments, text):
        result = edgecnn(*arguments, f"--region={text}")
        said = " ".join(result.err.replace("│", " ").split())
        assert result.code == 2 and "--region" in said and "expected X,Y,W,H: four fractions of the image" in said

    def test_in_a_recipe(self):
        recipe = build_recipe(parse_overrides([f"data.region=[{TEXT}]"]))
        assert recipe.data.region == REGION and tomllib.loads(to_toml(recipe))["data"]["region"] == list(REGION)
        assert build_recipe({}).data.region == WHOLE
        for wrong in ([0.5, 0, 0.6, 1], [0, 0, 0, 1]):
            with pytest.raises(RecipeError, match=r"data\.region must be four fractions of the image.*received"):
                build_recipe({"data": {"region": wrong}})
        with pytest.raises(RecipeError, match=r"data\.region must be an array of 4"):
            build_recipe({"data": {"region": [0, 0, 1]}})

    def test_with_frigates_images_it_is_refused(self):
        with pytest.raises(RecipeError, match="Frigate has already cut its images"):
            build_recipe({"data": {"source": "frigate:clips", "region": list(REGION)}})


@pytest.fixture
def digits(root):
    return root / "models" / "digits" / "digits.edgecnn"


@pytest.fixture
def with_region(digits, tmp_path):
    """The digits bundle, as if it had been trained on REGION."""
    from edgecnn.verify.golden import golden_photos

    bundle = read_bundle(digits)
    contract = dataclasses.replace(bundle.manifest.input, region=REGION)
    photos, entries = golden_photos(contract)
    manifest = dataclasses.replace(bundle.manifest, input=contract, golden_images=entries)
    path = tmp_path / "region.edgecnn"
    files = {name: bytes(data) for name, data in bundle.files.items() if name in bundle.manifest.files}
    write_bundle(path, manifest, files | photos)
    return path


class TestManifest:
    def test_a_bundle_without_a_region_keeps_its_bytes(self, root):
        for path in (root / "models").glob("*/*.edgecnn"):
            with zipfile.ZipFile(path) as bundle:
                data = bundle.read("manifest.json")
            assert Manifest.from_json(data).to_json() == data

    def test_a_bundle_holds_the_region_and_refuses_an_invalid_one(self, with_region):
        manifest = read_bundle(with_region).manifest
        assert manifest.input.region == REGION
        table = json.loads(manifest.to_json())
        assert table["input"]["region"] == list(REGION)
        table["input"]["region"] = [0.5, 0.0, 0.6, 1.0]
        with pytest.raises(BundleError, match=r"input\.region must be four fractions of the image"):
            Manifest.from_json(json.dumps(table).encode())


def scores(line):
    return [(item["label"], item["score"]) for item in line["top"]]


def lines(result):
    return [json.loads(line) for line in result.out.splitlines()]


@needs_engine
class TestOnTheDevice:
    @pytest.fixture
    def photos(self, tmp_path):
        """photo.png, part.png (its region, cropped as a person would), and photo.jpg, a different photo that is decoded reduced."""
        (tmp_path / "photo.png").write_bytes(encoded(noise()))
        (tmp_path / "part.png").write_bytes(encoded(cut_by_hand(noise())))
        (tmp_path / "photo.jpg").write_bytes(encoded(noise(1280, 960), "jpeg"))

    def test_a_file_is_classified_by_its_region_and_the_output_names_it(self, edgecnn, photos, with_region, digits):
        whole = lines(edgecnn("classify", "photo.png", "--json", "--model", digits))[0]
        cut = lines(edgecnn("classify", "part.png", "--json", "--model", digits))[0]
        requested = edgecnn("classify", "photo.png", "--json", "--model", digits, "--region", TEXT)
        own = edgecnn("classify", "photo.png", "--json", "--model", with_region)
        assert scores(lines(requested)[0]) == scores(lines(own)[0]) == scores(cut) != scores(whole)
        assert lines(requested)[0]["region"] == lines(own)[0]["region"] == list(REGION) and "region" not in whole
        assert f"; region {TEXT}\n" in requested.err and f"; region {TEXT}, the bundle's\n" in own.err
        overridden = edgecnn("classify", "photo.png", "--json", "--model", with_region, "--region", "0,0,1,1")
        assert scores(lines(overridden)[0]) == scores(whole) and "region" not in lines(overridden)[0]
        assert f"; region 0,0,1,1, not the bundle's {TEXT}\n" in overridden.err

    @pytest.mark.parametrize("rotation", ROTATIONS)
    def test_a_stream_sees_the_region(self, edgecnn, photos, with_region, schema_of, tmp_path, rotation):
        import jsonschema

        turned = np.ascontiguousarray(np.rot90(noise(), rotation // 90))
        (tmp_path / "turned.png").write_bytes(encoded(turned))
        source = "synthetic:?frames=2&pattern=turned.png"
        options = (
            "--model",
            with_region,
            "--rotate",
            rotation,
            "--keep",
            "kept",
            "--keep-margin",
            "1",
            "--keep-random",
            "0",
        )
        result = edgecnn("classify", source, "--json", *options, "--explain", "maps")
        found = lines(result)
        schema = schema_of("result")
        for line in found:
            jsonschema.Draft202012Validator(schema).validate(line)
        assert [line["region"] for line in found if line.get("event") == "camera_opened"] == [list(REGION)]
        frame = next(line for line in found if "seq" in line and "event" not in line)
        assert frame["region"] == list(REGION)
        (kept,) = (tmp_path / "kept").glob("*/*.jpg")
        assert Image.open(kept).size == (64, 48), (
            "as large as the whole frame, upright: training cuts it as the device did"
        )

        part = np.ascontiguousarray(np.rot90(cut_by_hand(noise()), rotation // 90))
        (tmp_path / "turned.png").write_bytes(encoded(part))
        options = ("--model", with_region, "--rotate", rotation, "--region", "0,0,1,1", "--keep-margin", "1")
        cut = lines(edgecnn("classify", source, "--json", *options, "--explain", "of-part"))
        assert scores(frame) == scores(next(line for line in cut if "seq" in line and "event" not in line))
        maps = [next((tmp_path / name).glob("*/*.png")).read_bytes() for name in ("maps", "of-part")]
        assert maps[0] == maps[1]

    def test_explain_names_the_region(self, edgecnn, photos, with_region, digits):
        text = edgecnn("explain", "photo.png", "--model", with_region)
        json_ = edgecnn("explain", "photo.png", "--model", digits, "--region", TEXT, "--json", "--out", "other")
        assert f" of the region {TEXT}" in text.out and lines(json_)[0]["region"] == list(REGION)
        plain = edgecnn("explain", "photo.png", "--model", digits, "--json", "--out", "third")
        assert "region" not in lines(plain)[0] and lines(plain)[0]["map"] != lines(json_)[0]["map"]

    def test_the_self_test_replays_it(self, edgecnn, with_region, tmp_path):
        result = edgecnn("selftest", "--model", with_region, "--json")
        report = json.loads(result.out)
        assert result.code == 0 and {layer["layer"] for layer in report["layers"] if layer["passed"]} == {
            "decode",
            "resize",
        }
        bundle = read_bundle(with_region)
        other = dataclasses.replace(
            bundle.manifest, input=dataclasses.replace(bundle.manifest.input, region=(0.0, 0.0, 0.5, 0.5)), files={}
        )
        files = {name: bytes(data) for name, data in bundle.files.items() if name in bundle.manifest.files}
        write_bundle(tmp_path / "other.edgecnn", other, files)
        failed = edgecnn("selftest", "--model", "other.edgecnn")
        assert failed.code and "the layer" in failed.err and "does not reproduce the bundle's bytes" in failed.err

    def test_in_a_program(self, with_region, digits):
        frame, part = noise(), np.ascontiguousarray(cut_by_hand(noise()))
        own, whole = Classifier.load(with_region), Classifier.load(digits)
        assert own.region == REGION and whole.region == WHOLE
        assert own.classify(frame).top == whole.classify(part).top
        assert [item.top for item in own.classify_batch([frame, frame])] == [whole.classify(part).top] * 2
        with pytest.raises(ValueError, match="four fractions of the image"):
            Classifier.load(digits, region=(0.5, 0.0, 0.6, 1.0))


def test_capture_keeps_the_region(edgecnn, tmp_path):
    for rotation in (0, 90):
        turned = np.ascontiguousarray(np.rot90(np.repeat(np.repeat(noise(), 4, 0), 4, 1), rotation // 90))
        (tmp_path / f"{rotation}.png").write_bytes(encoded(turned))
        result = edgecnn(
            "capture", f"synthetic:?frames=1&pattern={rotation}.png", "--label", "cat", "--interval", "1", "--warm-up", "0",
            "--out", f"kept{rotation}", "--region", TEXT, "--rotate", rotation,
        )  # fmt: skip
        assert result.code == 0, result.err
        (kept,) = (tmp_path / f"kept{rotation}" / "cat").iterdir()
        expected = cut_by_hand(np.repeat(np.repeat(noise(), 4, 0), 4, 1))
        found = np.asarray(Image.open(kept)).astype(int)
        assert found.shape == expected.shape and np.abs(found - expected).mean() < 5
    refused = edgecnn("capture", "synthetic:", "--label", "cat", "--interval", "1", "--region", "0,0,2,1")
    assert refused.code == 2 and "--region" in refused.err


@needs_engine
@pytest.mark.slow
def test_from_photos_to_a_bundle_that_sees_the_region(edgecnn, tmp_path, tiny_network):
    """Light or dark in the right half, noise in the left: a network that also sees the left half would learn noise."""
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    for name, level in (("dark", 40), ("light", 215)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):
            pixels = noise(32, 16, seed=number + level)
            pixels[:, 16:] = np.clip(level + (pixels[:, 16:].astype(int) - 128) // 8, 0, 255)
            (tmp_path / "photos" / name / f"{number}.png").write_bytes(encoded(pixels))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'name = "door"\n[data]\nsource = "photos"\n[network]\nname = "{tiny_network}"\nheight = 8\nwidth = 8\n'
        "[train]\nepochs = 12\nbatch_size = 16\nshift = 0\nlearning_rate = 0.02\n[qat]\nepochs = 1\nbatch_size = 16\n"
    )
    result = edgecnn("run", "recipe.toml", "--region", "0.5,0,0.5,1", "--max-drop", "100")
    assert result.code == 0, result.err
    bundle = read_bundle(tmp_path / "runs" / "door" / "door.edgecnn")
    assert bundle.manifest.input.region == (0.5, 0.0, 0.5, 1.0)
    assert bundle.manifest.provenance["recipe"]["data"]["region"] == [0.5, 0.0, 0.5, 1.0]
    assert edgecnn("selftest", "--model", bundle.path).code == 0
    from edgecnn.data import open_dataset

    dataset = open_dataset(build_recipe({"data": {"source": "photos", "region": [0.5, 0, 0.5, 1]}}).data)
    split = dataset.load(("validation",), height=8, width=8, channels=3, stage="train")["validation"]
    classifier = Classifier.load(bundle.path)
    for source, pixels in zip(split.sources, split.images, strict=True):
        given = Classifier.load(bundle.path, region=WHOLE).classify(pixels)
        seen = classifier.classify(tmp_path / "photos" / source)
        assert seen.top == given.top, "training's pixels and the device's are the same bytes"
        assert seen.decision == source.partition("/")[0]
    refused = edgecnn("export", "--for", "mediapipe")
    assert refused.code and "sees the region 0.5,0,0.5,1 of each image" in refused.err and region_text(REGION) == TEXT
