"""What the plots draw: each line's values, in percent where the axis says so, over the epochs of all phases."""

import io
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from edgecnn.report import plots as drawing
from edgecnn.report.figures import Bin, Coverage, Epoch, Reliability, epochs
from edgecnn.report.plots import (
    BAD,
    FLOAT,
    GOOD,
    INT8,
    MOST_NAMED,
    classes_plot,
    one_plot,
    plots,
    short,
    side_by_side,
    write_curves,
)
from edgecnn.runs import CURVES, HISTORY
from edgecnn.stress.stress_report import Condition, Measured, Stressed
from edgecnn.verify.parity_report import ClassDrop


def lines_of(axes):
    """Return the lines by their name in the legend: pairs (x, y)."""
    named = (line for line in axes.lines if not line.get_label().startswith("_"))
    return {line.get_label(): [(round(x, 4), round(y, 4)) for x, y in line.get_xydata().tolist()] for line in named}


def boundaries(axes):
    """Return where dotted vertical lines are."""
    return [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]


def test_the_curves_of_a_run_count_epochs_over_its_phases_and_show_percent(drawn_run, monkeypatch):
    run, kept = drawn_run(verified=False), []
    empty = drawing.empty
    monkeypatch.setattr(drawing, "empty", lambda *size: kept.append(empty(*size)) or kept[-1])
    write_curves(run)
    loss, accuracy = kept[0].axes
    assert lines_of(loss) == {"float": [(1, 2.0095), (2, 1.6756)], "qat": [(3, 7.2059)]}
    assert lines_of(accuracy) == {
        "training": [(1, 28.9), (2, 46.1), (3, 83.9)],
        "validation": [(1, 42.3676), (2, 49.8442), (3, 80.1)],
        "validation, int8": [(3, 80.06)],
    }
    assert boundaries(loss) == boundaries(accuracy) == [2.5]
    assert Image.open(io.BytesIO(run.file(CURVES).read_bytes())).size == (1380, 600)
    run.file(HISTORY).write_text("".join(run.file(HISTORY).read_text().splitlines(True)[:3]))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *file, **options: None)
    write_curves(run)
    assert [boundaries(axes) for axes in kept[1].axes] == [[], []], "the float phase alone"


def test_a_history_keeps_a_zero_and_leaves_out_only_what_was_not_measured(drawn_run):
    run = drawn_run(verified=False)
    row = "qat,2,0.0,0.5,0.25,0.125,100,1.0,0.0,0.75\n"
    run.file(HISTORY).write_text(run.file(HISTORY).read_text() + row)
    first, *_, last = epochs(run)
    assert (first.int8_accuracy, first.int8_agreement) == (None, None)
    assert vars(last) == {
        "phase": "qat", "epoch": 2, "loss": 0.0, "accuracy": 0.5, "validation_accuracy": 0.25, "learning_rate": 0.125,
        "int8_accuracy": 0.0, "int8_agreement": 0.75,
    }  # fmt: skip


def epoch(phase, number, accuracy, validation, int8=None):
    return Epoch(
        phase=phase, epoch=number, loss=1.0, accuracy=accuracy, validation_accuracy=validation, learning_rate=0.1,
        int8_accuracy=int8, int8_agreement=int8,
    )  # fmt: skip


def figures(name, **values):
    """Return a run's figures, none except the given ones."""
    none = {
        "confusion": (),
        "parity": None,
        "int8": None,
        "reliability": (),
        "coverage": (),
        "epochs": (),
        "layers": None,
    }
    return SimpleNamespace(**none | {"stress": None, "name": name} | values)


LEARNED = (epoch("float", 1, 0.3, 0.4), epoch("float", 2, 0.6, 0.5), epoch("qat", 1, 0.7, 0.55, 0.0))
COVERED = (
    Coverage(threshold=0.0, share_answered=1.0, error=0.3),
    Coverage(threshold=0.5, share_answered=0.6, error=0.0),
    Coverage(threshold=0.9, share_answered=0.0, error=None),
)


def test_one_run_has_its_training_and_int8_and_several_have_their_names():
    one = figures("one", epochs=LEARNED, coverage=COVERED)
    made = plots(one)
    assert list(made) == ["coverage", "learning"], "in this order, and none without figures"
    (axes,) = made["learning"][1]().axes
    assert lines_of(axes) == {
        "validation": [(1, 40.0), (2, 50.0), (3, 55.0)],
        "training": [(1, 30.0), (2, 60.0), (3, 70.0)],
        "validation, int8": [(3, 0.0)],
    }
    assert boundaries(axes) == [2.5] and axes.get_ylabel() == "accuracy, %"
    (axes,) = made["coverage"][1]().axes
    assert lines_of(axes) == {
        "answered": [(0.0, 1.0), (0.5, 0.6), (0.9, 0.0)],
        "errors among them": [(0.0, 0.3), (0.5, 0.0)],
    }
    other = figures("other", epochs=LEARNED[1:], coverage=COVERED[:1])
    together = side_by_side([one, other, figures("never trained")])
    (axes,) = together["learning"][1]().axes
    assert lines_of(axes) == {"one": [(1, 40.0), (2, 50.0), (3, 55.0)], "other": [(1, 50.0), (2, 55.0)]}
    (axes,) = together["coverage"][1]().axes
    assert lines_of(axes) == {"one": [(1.0, 0.3), (0.6, 0.0)], "other": [(1.0, 0.3)]}
    assert axes.get_xlabel().endswith("answered") and axes.get_ylabel().startswith("errors")
    assert side_by_side([one, figures("bare")]) == {}, "nothing to put side by side"


def test_reliability_is_accuracy_over_the_mean_score():
    bins = (
        Bin(low=0.4, high=0.6, images=3, score=0.55, accuracy=0.25),
        Bin(low=0.8, high=1.0, images=2, score=0.9, accuracy=1.0),
    )
    one = Reliability(model="float", temperature=1.0, bins=bins[1:])
    tempered = Reliability(model="int8", temperature=1.257, bins=bins)
    (axes,) = one_plot(drawing.draw_reliability, figures("m", reliability=(one, tempered))).axes
    assert lines_of(axes) == {"float": [(0.9, 1.0)], "int8, temperature 1.26": [(0.55, 0.25), (0.9, 1.0)]}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("mean score", "accuracy")


def test_the_noisiest_layers_are_drawn_first():
    layers = [SimpleNamespace(layer=f"layer{n}", sqnr_db=10.0 + n) for n in range(MOST_NAMED + 2)]
    drawn = plots(figures("m", layers=SimpleNamespace(layers=tuple(layers))))["layers"][1]()
    (axes,) = drawn.axes
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [10.0 + n for n in range(MOST_NAMED)] and axes.yaxis_inverted()
    assert axes.get_yticklabels()[0].get_text() == "layer0" and axes.get_xlabel().endswith("dB")


def test_a_page_chooses_the_colours_of_its_plots_and_each_plot_has_its_own_identifiers():
    drops = [ClassDrop(label="cat", images=5, drop=0.1), ClassDrop(label="dog", images=5, drop=-0.1)]
    drawn = drawing.svg(lambda: classes_plot(drops), "drops")
    assert "fill: var(--bad)" in drawn and "fill: var(--good)" in drawn and not re.search("#[0-9a-f]{6}", drawn)
    names = re.findall(r'\bid="([^"]*)"', drawn)
    assert names and all(name.startswith("drops-") for name in names)
    assert set(re.findall(r"url\(#([^)]*)\)", drawn)) <= set(names)


def test_of_many_classes_the_worst_and_the_best_are_drawn():
    drops = [ClassDrop(label=f"c{n}", images=5, drop=float(n - 16)) for n in range(MOST_NAMED + 3)]
    (axes,) = classes_plot([*drops, ClassDrop(label="none", images=0, drop=None)]).axes
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [*range(16, 1, -1), *range(-2, -17, -1)]
    colours = [to_hex(bar.get_facecolor()) for bar in axes.patches]
    assert colours == [BAD] * 15 + [GOOD] * 15
    (axes,) = classes_plot(drops[:MOST_NAMED]).axes
    assert len(axes.patches) == MOST_NAMED


def test_a_stress_plot_has_a_part_per_corruption_from_the_clean_images_on():
    def point(strength, int8, float_):
        both = (
            Measured(accuracy=value, interval=(0.0, 1.0)) if value is not None else None for value in (int8, float_)
        )
        made = dict(zip(("int8", "float"), both, strict=True))
        return Condition(strength=strength, value="", agreement=None, agreement_interval=None, **made)

    blur = Stressed(
        corruption="blur", unit="", float=None, int8=0.5, agreement=None, lost=1.0, strengths=(point(2, 0.5, 0.7), point(4, 0.25, None)),
    )  # fmt: skip
    single = replace(blur, corruption="swapped", strengths=blur.strengths[:1])
    report = SimpleNamespace(clean=point(0, 0.75, 0.8), corruptions=(single, blur, replace(blur, corruption="noise")))
    figure = plots(figures("m", stress=report))["stress"][1]()
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == ["blur", "noise"], "one with a single strength has no curve"
    assert lines_of(shown[0]) == {"float": [(0, 80.0), (2, 70.0)], "int8": [(0, 75.0), (2, 50.0), (4, 25.0)]}
    assert [to_hex(line.get_color()) for line in shown[0].lines] == [FLOAT, INT8] and shown[0].get_ylim() == (0, 100)
    only = drawing.stress_plot(SimpleNamespace(clean=report.clean, corruptions=(single,)))
    assert [axes.get_title() for axes in only.axes if axes.axison] == ["swapped"], "unless there is no other"
    many = drawing.stress_plot(SimpleNamespace(clean=report.clean, corruptions=[blur] * 12))
    for drawn in (only, many):
        drawn.canvas.draw()
        parts = [axes.get_window_extent() for axes in drawn.axes if axes.axison]
        assert all(0.5 < part.height / part.width < 1 for part in parts), [part.height / part.width for part in parts]


@pytest.mark.parametrize(("label", "shown"), [("a" * 18, "a" * 18), ("a" * 19, "a" * 17 + "…"), ("5$", r"5\$")])
def test_a_long_label_is_cut_to_18_characters(label, shown):
    assert short(label) == shown


def test_few_classes_have_their_counts_in_the_cells_and_many_have_none():
    matrix = SimpleNamespace(model="m", cells=((0, 1, 9), (1, 0, 1), (1, 1, 4)))
    for count, numbers, names in ((12, ["9", "1", "4"], 12), (13, [], 13), (MOST_NAMED, [], MOST_NAMED)):
        (axes,) = drawing.confusion_plot(matrix, [f"c{n}" for n in range(count)]).axes
        assert [text.get_text() for text in axes.texts] == numbers and len(axes.get_yticklabels()) == names
        assert [text.get_color() for text in axes.texts] == ["white", "black", "white"][: len(numbers)]
    (axes,) = drawing.confusion_plot(matrix, [f"c{n}" for n in range(MOST_NAMED + 1)]).axes
    assert "c1" not in [label.get_text() for label in axes.get_yticklabels()]
    assert np.count_nonzero(axes.images[0].get_array()) == 3
