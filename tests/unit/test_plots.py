"""Figures: what is drawn is what was counted, and what a reader must know stands on it."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib import pyplot as plt

from ser_kd_utils.methods.base import Variant
from ser_kd_utils.report import plots
from ser_kd_utils.report.differences import OVER_UTTERANCES
from ser_kd_utils.report.tables import Cell, Selection, Table, word

matplotlib.use("agg")
LABELS = ("angry", "sad")
SNRS = (20.0, 0.0, -5.0)
VARIANTS = {
    "a": Variant("a", "teacher", "teacher, clean", "", noisy=False),
    "c": Variant("c", "mlkd", "student, noisy", ""),
    "e": Variant("e", "mlkd", "student + levels", ""),
}
STYLES = {"a": ("#000000", "o", "-"), "c": ("#E69F00", "^", "-"), "e": ("#D55E00", "D", "--")}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def predictions(clean: int, missed: dict[str, tuple[int, ...]]) -> pd.DataFrame:
    """Ten angry and ten sad utterances; so many angry ones are missed, clean and by noise type at SNRS.

    One missed costs 5 points of UA.
    """
    wrong = {("clean", np.nan): clean}
    wrong |= {(kind, snr_db): n for kind, each in missed.items() for snr_db, n in zip(SNRS, each, strict=True)}
    rows = [
        (f"{label} {number}", condition, snr_db, label, "sad" if label == "sad" or number < n else "angry")
        for (condition, snr_db), n in wrong.items()
        for label in LABELS
        for number in range(10)
    ]
    table = pd.DataFrame(rows, columns=["utterance", "condition", "snr_db", "label", "prediction"])
    return table.assign(in_range=~(table["snr_db"] < 0))


@pytest.fixture(scope="module")
def tables():
    """Row letter -> predictions. UA clean 100 and 95 %, at 0 dB 80 and 70 %, at -5 dB 55 and 65 %."""
    return {
        "c": predictions(0, {"hum": (2, 4, 10), "buzz": (0, 4, 8)}),
        "e": predictions(1, {"hum": (0, 6, 6), "buzz": (1, 6, 8)}),
    }


def curves(predictions, **more):
    return plots.snr_curves(predictions, VARIANTS, STYLES, chance=0.5, **more)


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def ticks(labels) -> list[str]:
    return [label.get_text() for label in labels]


def lines(axis) -> dict[str, np.ndarray]:
    """Legend entry -> the heights of its line."""
    handles, names = axis.get_legend_handles_labels()
    return {name: handle.lines[0].get_ydata() for name, handle in zip(names, handles, strict=True)}


def test_a_curve_goes_from_the_lowest_snr_to_clean_speech(tables):
    (axis,) = curves(tables).axes
    assert ticks(axis.get_xticklabels()) == ["-5", "0", "20", "clean"]
    assert axis.get_title() == "mean of the noise types"
    drawn = lines(axis)
    assert list(drawn) == ["(c) student, noisy", "(e) student + levels"]
    np.testing.assert_allclose(drawn["(c) student, noisy"], [55, 80, 95, 100])
    np.testing.assert_allclose(drawn["(e) student + levels"], [65, 70, 97.5, 95])
    assert [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == ":"] == [50]  # chance


def test_curves_by_type_have_a_panel_each_and_clean_speech_in_all(tables):
    buzz, hum = curves(tables, per_type=True).axes
    assert (buzz.get_title(), hum.get_title()) == ("buzz", "hum")
    np.testing.assert_allclose(lines(buzz)["(c) student, noisy"], [60, 80, 100, 100])
    np.testing.assert_allclose(lines(hum)["(c) student, noisy"], [50, 80, 90, 100])
    assert texts(buzz) == texts(hum) == ["not trained"]


def test_the_snr_below_training_is_marked_and_no_other(tables):
    (axis,) = curves(tables).axes
    assert texts(axis) == ["not trained"]
    assert [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axis.patches] == [(-0.5, 0.5)]
    inside = {row: table.assign(in_range=True) for row, table in tables.items()}
    (axis,) = curves(inside).axes
    assert not axis.texts and not axis.patches


def test_nothing_is_marked_for_a_teacher_that_never_heard_noise(tables):
    (axis,) = curves({"a": tables["c"]}).axes
    assert not axis.texts and not axis.patches


def test_gains_are_differences_of_ua_with_their_mean_and_clean_speech_below():
    without = predictions(0, {"hum": (2, 4, 10), "buzz": (0, 4, 8), "fan": (0, 6, 3)})
    distilled = predictions(1, {"hum": (0, 6, 6), "buzz": (1, 6, 8), "fan": (1, 0, 1)})
    axis, bar = plots.gain_map(distilled, without).axes
    assert ticks(axis.get_yticklabels()) == ["buzz", "fan", "hum", "mean"]
    assert ticks(axis.get_xticklabels()) == ["clean", "20", "0", "-5\nnot trained"]
    assert texts(axis) == [
        *("-5.0", "-10.0", "+0.0"),
        *("-5.0", "+30.0", "+10.0"),
        *("+10.0", "-10.0", "+20.0"),
        *("-5.0", "+0.0", "+3.3", "+10.0"),
    ]
    cells = axis.collections[0].get_array()
    assert cells.mask[:3, 0].all() and cells.mask.sum() == 3  # clean speech has no noise type
    assert bar.get_ylabel() == "UA, points"


def test_the_colours_of_gains_are_symmetric_about_zero_and_under_a_point_pale(tables):
    mesh = plots.gain_map(tables["e"], tables["c"]).axes[0].collections[0]
    assert mesh.get_clim() == (-20, 20)
    assert plots.gain_map(tables["c"], tables["c"]).axes[0].collections[0].get_clim() == (-1, 1)


def test_confusions_are_percent_of_the_true_class_in_a_grid_filled_row_by_row(tables):
    clean, noisy = (tables["e"].query(query) for query in ("condition == 'clean'", "snr_db == 0"))
    figure = plots.confusions({"clean": clean, "0 dB": noisy, "3": clean, "4": noisy}, LABELS, columns=2)
    assert [axis.get_title() for axis in figure.axes] == ["clean", "0 dB", "3", "4"]
    assert [texts(axis) for axis in figure.axes] == [["90", "10", "0", "100"], ["40", "60", "0", "100"]] * 2
    places = [axis.get_subplotspec().get_geometry()[:3] for axis in figure.axes]
    assert places == [(2, 2, 0), (2, 2, 1), (2, 2, 2), (2, 2, 3)]
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "", "predicted", "predicted"]
    assert [axis.get_ylabel() for axis in figure.axes] == ["true", "", "true", ""]
    one_row = plots.confusions({"clean": clean, "0 dB": noisy}, LABELS).axes
    assert [axis.get_subplotspec().get_geometry()[:3] for axis in one_row] == [(1, 2, 0), (1, 2, 1)]
    assert ticks(one_row[0].get_yticklabels()) == ticks(one_row[0].get_xticklabels()) == list(LABELS)


def difference(value: float, low: float, high: float) -> Cell:
    return Cell(value, str(value), low, high, selection=Selection(("x", "y"), difference=True))


def test_ablations_are_dots_with_both_their_intervals_in_the_order_given():
    found = {"no cosine": (-2.0, -3.5, -1.0), "gamma 10": (0.5, -1.0, 2.0), "two stages": (1.0, 0.2, 1.5)}
    lines = [
        {"row": word(name), "gain, points": difference(*ends), OVER_UTTERANCES: difference(0, ends[1] + 0.2, ends[2])}
        for name, ends in found.items()
    ]
    table = Table("some", ("row",), lambda: lines)
    (axis,) = plots.ablation_points(table, "UA noisy less that of (e), points").axes
    (dots,) = axis.containers
    assert dots.lines[0].get_xydata().tolist() == [[-2, 0], [0.5, 1], [1, 2]]
    bars = [segment[:, 0].tolist() for segment in dots.lines[2][0].get_segments()]
    np.testing.assert_allclose(bars, [[-3.5, -1.0], [-1.0, 2.0], [0.2, 1.5]])
    grey = axis.collections[-1]
    ends = [segment.tolist() for segment in grey.get_segments()]
    np.testing.assert_allclose(ends, [[[-3.3, 0], [-1, 0]], [[-0.8, 1], [2, 1]], [[0.4, 2], [1.5, 2]]])
    assert ticks(axis.get_yticklabels()) == ["no cosine", "gamma 10", "two stages"]
    assert axis.yaxis_inverted()  # the first on top
    assert [line.get_xdata() for line in axis.lines if line.get_color() == "black"] == [[0, 0]]
    assert axis.get_xlabel() == "UA noisy less that of (e), points; grey: 95 % over utterances"


def test_an_interval_over_two_folds_does_not_press_the_others_flat():
    use = Selection(("e", "c"), difference=True)

    def line(name: str, wide: float) -> dict[str, Cell]:
        grey = Cell("[-3.0, 4.0]", "[-3.0, 4.0]", -3.0, 4.0)
        return {"row": word(name), "points": Cell(1.0, "1.0", -wide, wide, (), use), OVER_UTTERANCES: grey}

    for widest, limits in ((110.0, (-10, 10)), (6.0, (-6.6, 6.6))):
        lines = [line("gamma 10", 5.0), line("two stages", widest)]
        (axis,) = plots.ablation_points(Table("some", ("row",), lambda lines=lines: lines), "points").axes
        assert axis.get_xlim() == pytest.approx(limits)


def test_dollar_signs_in_the_names_of_classes_and_noise_are_no_mathematics(tables, tmp_path):
    plots.use_style()
    renamed = {"angry": "$an_{gry$", "sad": "s$a$d"}
    table = tables["c"].replace({"label": renamed, "prediction": renamed}).replace({"condition": {"hum": "$h_{um$"}})
    labels = list(renamed.values())
    figures = [
        plots.confusions({"$one_{$": table}, labels),
        plots.confusion_changes({"$one_{$": table}, table, labels),
        curves({"c": table}, per_type=True),
        plots.gain_map(table, table),
    ]
    for number, figure in enumerate(figures):
        plots.save_figure(figure, tmp_path, str(number))  # matplotlib would refuse "$an_{gry$" as a formula
    drawn = figures[0].axes[0].get_xticklabels()[0]
    assert drawn.get_text() == "$an_{gry$" and not drawn.get_parse_math()


def test_a_figure_is_saved_as_png_below_the_records(tmp_path):
    figure, _ = plt.subplots()
    plots.save_figure(figure, tmp_path / "demo-tiny", "empty")
    assert (tmp_path / "demo-tiny/figures/empty.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("cell", "shown", "hidden"),
    [
        (
            "load_corpus('emodb', None)",
            ["FileNotFoundError: emodb: no data folder given.", "Pass with data_root the"],
            "Traceback",
        ),
        ("int('word')", ["Traceback", "invalid literal"], "data_root"),
    ],
)
def test_a_notebook_shows_what_the_package_refuses_in_one_paragraph_that_names_its_parameter(
    cell, shown, hidden, capsys
):
    lines = (
        "from ser_kd_utils.data.corpora import load_corpus",
        "from ser_kd_utils.report import plots",
        "plots.use_style()",
    )
    try:
        done = InteractiveShell.instance().run_cell("\n".join((*lines, cell)))
    finally:
        InteractiveShell.clear_instance()
    printed = capsys.readouterr().out
    assert not done.success and hidden not in printed
    assert all(" ".join(words.split()) in " ".join(printed.split()) for words in shown), printed
