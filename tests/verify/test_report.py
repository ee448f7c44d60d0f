"""The report's dataclasses, its JSON and its schema are one thing; reports of before are still read."""

import dataclasses
import importlib.util
import json

import jsonschema
import pytest

from edgecnn.bundle.read import read_bundle
from edgecnn.verify.document import from_json, to_json
from edgecnn.verify.report import Report


def shipped(root):
    paths = sorted(root.glob("models/*/*.edgecnn"))
    assert paths
    return {path.stem: json.loads(read_bundle(path).files["parity.json"]) for path in paths}


def holds(one, other):
    """Tell whether a JSON value holds all that another one does."""
    if isinstance(other, dict):
        return all(key in one and holds(one[key], value) for key, value in other.items())
    if isinstance(other, list):
        return len(one) == len(other) and all(map(holds, one, other))
    return one == other


def test_the_schema_is_made_from_the_dataclasses(root):
    specification = importlib.util.spec_from_file_location("schema", root / "tools" / "schema.py")
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    assert (root / "edgecnn/verify/parity.schema.json").read_text() == tool.text(), "python tools/schema.py"
    jsonschema.Draft202012Validator.check_schema(tool.schema())


def test_reports_in_bundles_are_read_and_written_again(root):
    """Nothing that they hold is lost; keys that they lack are added with their defaults, and the schema takes both."""
    schema = json.loads((root / "edgecnn/verify/parity.schema.json").read_text())
    for name, written in shipped(root).items():
        jsonschema.validate(written, schema)
        report = from_json(Report, written)
        again = to_json(report)
        jsonschema.validate(again, schema)
        assert holds(again, written), name
        assert from_json(Report, again) == report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"passed": 1}, "passed is 1, expected bool"),
        ({"run": 3}, "run is 3, expected str"),
        ({"extra": 1}, "extra is an unknown key"),
        ({"models": {}}, r"models is \{\}, expected an array"),
        ({"models": [{}]}, r"models\[0\]\.name is missing"),
        ({"versions": {"numpy": 2}}, r"versions\.numpy is 2, expected str"),
        ({"schema": "edgecnn.parity/2"}, "schema is 'edgecnn.parity/2', expected one of 'edgecnn.parity/1'"),
        ({"data": []}, r"data is \[\], expected an object"),
        ({"max_drop": True}, "max_drop is True, expected float"),
    ],
)
def test_what_is_not_of_the_form_is_named(root, change, message):
    written = shipped(root)["digits"]
    with pytest.raises(ValueError, match=message):
        from_json(Report, written | change)
    with pytest.raises(ValueError, match="passed is missing"):
        from_json(Report, {key: value for key, value in written.items() if key != "passed"})


def test_a_key_that_is_left_out_is_read_as_its_default(root):
    report = from_json(Report, shipped(root)["digits"])
    assert "input_ranges" not in to_json(report) and "images" not in to_json(report)["data"]
    assert "images" in to_json(dataclasses.replace(report.data, images=5))
