"""The report's dataclasses, JSON and schema agree."""

import dataclasses
import functools
import json

import jsonschema
import pytest

from edgecnn.bundle.file import read_bundle
from edgecnn.tables import build, to_json
from edgecnn.verify.parity_report import Report


@functools.cache
def shipped(root):
    paths = sorted(root.glob("models/*/*.edgecnn"))
    assert paths
    return {path.stem: json.loads(read_bundle(path).files["parity.json"]) for path in paths}


@pytest.mark.parametrize("name", ["result", "explanation", "parity", "stress", "report", "inspection", "against"])
def test_every_schema_is_valid(schema_of, name):
    jsonschema.Draft202012Validator.check_schema(schema_of(name))


def test_reports_in_bundles_are_read_and_written_again(root, schema_of):
    validator = jsonschema.Draft202012Validator(schema_of("parity"))
    for name, written in shipped(root).items():
        validator.validate(written)
        assert to_json(build(Report, written, ValueError)) == written, name


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"passed": 1}, "passed"),
        ({"extra": 1}, "extra"),
        ({"models": [{}]}, r"models\[0\]\.name"),
        ({"versions": {"numpy": 2}}, r"versions\.numpy"),
        ({"schema": "edgecnn.parity/2"}, "edgecnn.parity/1"),
        ({"max_drop": True}, "max_drop"),
    ],
)
def test_a_deviation_from_the_form_is_named(root, change, named):
    written = shipped(root)["digits"]
    with pytest.raises(ValueError, match=named):
        build(Report, written | change, ValueError)
    with pytest.raises(ValueError, match="passed"):
        build(Report, {key: value for key, value in written.items() if key != "passed"}, ValueError)


def test_a_missing_key_is_read_as_its_default(root):
    report = build(Report, shipped(root)["digits"], ValueError)
    assert "input_ranges" not in to_json(report) and "images" not in to_json(report)["data"]
    assert "images" in to_json(dataclasses.replace(report.data, images=5))
