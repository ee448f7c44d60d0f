"""Heads on the features of EfficientNet-Lite0, Lite1 and Lite2, all of them whole at 224x224, on all photos of some sets by five folds.

Lite1 is a file, as `edgecnn train --backbone` takes it: docs/examples/lite1.py writes it. The folds are the same for the three.

    python tools/bench/backbones.py --data signs.zip coins.zip --backbone lite1.onnx --features FOLDER
"""

import dataclasses
from pathlib import Path

import numpy as np
from harness import Results, Row, about, finish, parser
from simplest import SIDE, all_photos, gain

from edgecnn.data.decoding import class_weights
from edgecnn.evaluate.statistics import balanced_accuracy, found_by_class

FAMILIES = ("efficientnet_lite0", "lite1", "efficientnet_lite2")
HEADINGS = ("photos", "n", "Lite0", "Lite1", "Lite2", "Lite1 gains over Lite0, in points", "over Lite2")


def main() -> None:
    """Fit the heads, print a table and write the figures."""
    made = parser(__doc__, "backbones")
    made.add_argument("--data", type=Path, nargs="+", required=True, help="zips of photos, with one folder per class")
    made.add_argument("--backbone", type=Path, required=True, help="Lite1's ONNX file")
    made.add_argument("--features", type=Path, required=True, help="folder that keeps features")
    arguments = made.parse_args()
    context = about("backbones")
    results, archives = Results(arguments.out, context), {path.stem: path for path in arguments.data}
    for case in results.missing(data=archives):
        results.add(**case, **measure(archives[case["data"]], arguments.backbone, arguments.features / case["data"]))
    finish(arguments.out, {**context, "results": results.rows}, HEADINGS, map(row, results.rows))


def measure(archive: Path, backbone: Path, kept: Path) -> Row:
    """Return counts of an archive's photos that heads fitted without them answer correctly, and of those on which two heads differ."""
    from edgecnn.networks.blocks import is_whole
    from edgecnn.stages import Silent
    from edgecnn.stages.network_choice import with_backbone
    from edgecnn.train.candidates import Images, folds_of, frozen_features, held_out

    recipe, dataset, photos = all_photos(archive)
    network = dataclasses.replace(recipe.network, name=str(backbone.resolve()), height=SIDE, width=SIDE)
    read = with_backbone(dataclasses.replace(recipe, network=network), dataset, Silent())
    names = {"lite1": read.network.name}
    folds = folds_of(photos.classes, photos.groups, recipe.seed)
    weights = class_weights(photos.classes, recipe.train.class_weights)
    right: dict[str, np.ndarray] = {}
    balanced: dict[str, float] = {}
    for family in FAMILIES:
        used = read if family == "lite1" else recipe
        reading = used.input_scale, used.input_zero_point
        found = frozen_features(names.get(family, family), (SIDE, SIDE), photos, reading, kept, used.network.options)
        features = next(values for rung, values in found.items() if family == "lite1" or is_whole(rung))
        answers = held_out(Images(features, photos.classes, weights, len(dataset.labels)), folds)[0].argmax(axis=1)
        right[family] = answers == photos.classes
        balanced[family] = balanced_accuracy(found_by_class(answers, photos.classes, dataset.labels))
    return {
        "n": len(folds),
        "unbalanced": len(set(weights.tolist())) > 1,
        "right": {family: int(one.sum()) for family, one in right.items()},
        "balanced": balanced,
        "gains": {family: gain(right[family], right["lite1"]) for family in FAMILIES if family != "lite1"},
        "read_as": dict(read.network.options),
    }


def row(result: Row) -> tuple[str, ...]:
    """Return a set's figures as text."""
    shares = (
        f"{result['right'][family] / result['n']:.1%}"
        + (f", balanced {result['balanced'][family]:.1%}" if result["unbalanced"] else "")
        for family in FAMILIES
    )
    gains = ("{:+.1f} ({:+.1f} to {:+.1f})".format(*one) for one in result["gains"].values())
    return (result["data"], f"{result['n']:,}", *shares, *gains)


if __name__ == "__main__":
    main()
