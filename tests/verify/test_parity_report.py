"""The report's dataclasses, JSON and schema agree, and earlier reports can still be read."""

import dataclasses
import json

import jsonschema
import pytest

from edgecnn.bundle.read import read_bundle
from edgecnn.tables import build, to_json
from edgecnn.verify.parity_report import Report


def shipped(root):
    paths = sorted(root.glob("models/*/*.edgecnn"))
    assert paths
    return {path.stem: json.loads(read_bundle(path).files["parity.json"]) for path in paths}


def holds(one, other):
    """Return whether a JSON value contains everything that another one does."""
    if isinstance(other, dict):
        return all(key in one and holds(one[key], value) for key, value in other.items())
    if isinstance(other, list):
        return len(one) == len(other) and all(map(holds, one, other))
    return one == other


@pytest.mark.parametrize("name", ["result", "explanation", "parity", "stress", "report", "inspection", "against"])
def test_every_schema_is_valid(schema_of, name):
    jsonschema.Draft202012Validator.check_schema(schema_of(name))


def test_reports_in_bundles_are_read_and_written_again(root, schema_of):
    """Nothing in them is lost. Missing keys are added with their defaults, and the schema accepts both."""
    schema = schema_of("parity")
    for name, written in shipped(root).items():
        jsonschema.validate(written, schema)
        report = build(Report, written, ValueError)
        again = to_json(report)
        jsonschema.validate(again, schema)
        assert holds(again, written), name
        assert build(Report, again, ValueError) == report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"passed": 1}, "passed must be a boolean, received 1"),
        ({"run": 3}, "run must be a string, received 3"),
        ({"extra": 1}, "unknown key extra"),
        ({"models": {}}, r"models must be an array, received \{\}"),
        ({"models": [{}]}, r"the key models\[0\]\.name is missing"),
        ({"versions": {"numpy": 2}}, r"versions\.numpy must be a string, received 2"),
        ({"schema": "edgecnn.parity/2"}, "schema must be one of edgecnn.parity/1; received 'edgecnn.parity/2'"),
        ({"data": []}, r"data must be a table, received \[\]"),
        ({"max_drop": True}, "max_drop must be a number, received True"),
    ],
)
def test_a_deviation_from_the_form_is_named(root, change, message):
    written = shipped(root)["digits"]
    with pytest.raises(ValueError, match=message):
        build(Report, written | change, ValueError)
    with pytest.raises(ValueError, match="passed is missing"):
        build(Report, {key: value for key, value in written.items() if key != "passed"}, ValueError)


def test_a_missing_key_is_read_as_its_default(root):
    report = build(Report, shipped(root)["digits"], ValueError)
    assert "input_ranges" not in to_json(report) and "images" not in to_json(report)["data"]
    assert "images" in to_json(dataclasses.replace(report.data, images=5))
