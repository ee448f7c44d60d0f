"""`edgecnn train --keys`, and `--size` as the input's width and height."""

import json

import pytest

from edgecnn.cli.recipes import resolve, said
from edgecnn.cli.workstation_options import Data, read_sides
from edgecnn.recipe.keys import keys


def test_keys_lists_every_recipe_key(edgecnn):
    result = edgecnn("train", "--keys")
    assert result.code == 0
    for key in keys():
        assert f"\n{key.name} " in f"\n{result.out}" and f"    {key.meaning}\n" in result.out
    assert "train.epochs              whole number; 1 to 10,000\n" in result.out
    listed = json.loads(edgecnn("train", "--keys", "--json").out)
    assert [item["name"] for item in listed] == [key.name for key in keys()]
    assert set(listed[0]) == {"name", "type", "default", "limits", "meaning"}


@pytest.mark.parametrize(("text", "width", "height"), [("128", 128, 128), ("160x96", 160, 96), ("160X96", 160, 96)])
def test_size_is_width_by_height(text, width, height):
    network = resolve(None, None, said(Data(size=read_sides(text)))).network
    assert (network.width, network.height) == (width, height)


def test_size_comes_before_the_recipe(tmp_path):
    (tmp_path / "r.toml").write_text("[network]\nwidth = 32\nheight = 32\n")
    assert resolve(tmp_path / "r.toml", None, said(Data(size=(48, 48)))).network.height == 48
    assert resolve(tmp_path / "r.toml", None, {}).network.height == 32


@pytest.mark.parametrize("text", ["", "x", "12y", "0", "-3", "12x", "1x2x3", "1.5"])
def test_an_invalid_size_is_a_usage_error(edgecnn, text):
    result = edgecnn("train", "--size", text)
    assert result.code == 2
    assert f"received {text!r}, expected WIDTHxHEIGHT or one number, such as 160x120 or 128" in result.err


def test_a_size_out_of_range_names_the_key(edgecnn):
    result = edgecnn("train", "--size", "2000")
    assert result.code == 4 and "network.width " in result.err and " 1 and 1,024" in result.err


def test_the_default_size_is_in_the_help(edgecnn):
    for command in ("train", "run"):
        assert "or 96 if they differ" in " ".join(edgecnn(command, "--help").out.split())
