"""What the pictures show is read from the figures as they are written; that they are PNGs from the files."""

import itertools
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from trainyard_shared import plotting

NAMES = ["cat", "dog", "costs $5 or $6"]
MATRIX = [[8, 2, 0], [0, 10, 0], [4, 1, 5]]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is written during the test."""
    written: list[Figure] = []
    savefig = Figure.savefig

    def spy(self: Figure, *arguments, **options) -> None:
        savefig(self, *arguments, **options)
        written.append(self)

    monkeypatch.setattr(Figure, "savefig", spy)
    return written


def texts(figure: Figure) -> list[str]:
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [text.get_text().replace(r"\$", "$") for text in found]


def assert_nothing_is_cut_off(figure: Figure) -> None:
    edges = figure.bbox
    for axes in figure.axes:
        (left, right), (bottom, top) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
        # matplotlib keeps labels of ticks just outside of the axes, and does not draw them.
        x_labels = [label for label in axes.get_xticklabels() if left <= label.get_position()[0] <= right]
        y_labels = [label for label in axes.get_yticklabels() if bottom <= label.get_position()[1] <= top]
        around = [*x_labels, *y_labels, axes.xaxis.label, axes.yaxis.label] if axes.axison else []
        for text in [*axes.texts, *around]:
            box = text.get_window_extent()
            if text.get_visible() and text.get_text():
                inside = box.x0 >= 5 and box.x1 <= edges.x1 - 5 and box.y0 >= 5 and box.y1 <= edges.y1 - 5
                assert inside, f"{text.get_text()!r} at {box} leaves the picture {edges}"


def train(step: int, **values: object) -> dict[str, object]:
    return {"kind": "train", "step": step, **values}


def val(step: int, **values: object) -> dict[str, object]:
    return {"kind": "val", "step": step, **values}


def lines(figure: Figure, panel: int) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in figure.axes[panel].get_lines()}


def test_training_curves_show_loss_accuracy_and_learning_rate(figures: list[Figure], tmp_path: Path) -> None:
    records = [train(step, loss=2 - step / 100, learning_rate=0.1) for step in range(0, 100, 2)]
    records += [val(20, loss=None, accuracy=None), val(50, loss=1.6, accuracy=0.4), val(100, loss=1.2, accuracy=0.6)]
    path = plotting.training_curves(records, tmp_path / "plots" / "curves.png", note="generated sample data")
    assert imread(path).shape[2] == 4
    assert [axes.get_ylabel() for axes in figures[0].axes] == ["loss", "accuracy (%)", "learning rate"]
    loss = lines(figures[0], 0)
    assert loss["training, as logged"][-1].tolist() == [98, pytest.approx(1.02)]
    # The smoothed curve of a straight line is the line itself, without lag.
    np.testing.assert_allclose(loss["training, smoothed"][10:-10], loss["training, as logged"][10:-10])
    assert lines(figures[0], 1)["validation"].tolist() == [[50, 40], [100, 60]]
    assert "generated sample data" in texts(figures[0])
    assert_nothing_is_cut_off(figures[0])


def test_training_curves_of_one_record_show_one_point(figures: list[Figure], tmp_path: Path) -> None:
    plotting.training_curves([train(20, loss=1.5)], tmp_path / "curves.png")
    assert [axes.get_ylabel() for axes in figures[0].axes] == ["loss"]
    (line,) = figures[0].axes[0].get_lines()
    assert (line.get_xydata().tolist(), line.get_marker()) == ([[20, 1.5]], "o")


def test_training_curves_name_the_step_at_which_the_loss_stopped_being_finite(
    figures: list[Figure], tmp_path: Path
) -> None:
    records = [train(step, loss="nan" if step >= 30 else 1.0, accuracy=0.1) for step in range(50)]
    plotting.training_curves(records, tmp_path / "curves.png")
    loss = lines(figures[0], 0)
    assert np.isnan(loss["training, smoothed"][30:, 1]).all()
    assert np.isfinite(loss["training, smoothed"][:30, 1]).all()
    assert loss["not finite (train), first at step 30"][:, 0].tolist() == [30, 30]


def test_training_curves_take_the_last_of_repeated_steps(figures: list[Figure], tmp_path: Path) -> None:
    records = [train(1, loss=9.0), train(2, loss=8.0), train(1, loss=7.0)]
    plotting.training_curves(records, tmp_path / "curves.png")
    assert lines(figures[0], 0)["training"].tolist() == [[1, 7], [2, 8]]


def test_training_curves_without_records_say_so(figures: list[Figure], tmp_path: Path) -> None:
    plotting.training_curves([], tmp_path / "curves.png")
    assert "Nothing was recorded yet." in texts(figures[0])


def test_confusion_matrix_prints_shares_and_counts(figures: list[Figure], tmp_path: Path) -> None:
    plotting.confusion_matrix(MATRIX, NAMES, tmp_path / "confusion.png", subtitle="30 images")
    figure = figures[0]
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[80, 20, 0], [0, 100, 0], [40, 10, 50]])
    cells = {
        (round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in figure.axes[0].texts
    }
    assert cells == {
        (0, 0): "80 %\n8",
        (0, 1): "20 %\n2",
        (1, 1): "100 %\n10",
        (2, 0): "40 %\n4",
        (2, 1): "10 %\n1",
        (2, 2): "50 %\n5",
    }
    assert {"30 images", "true class", "predicted class", "costs $5 or $6"} <= set(texts(figure))
    assert_nothing_is_cut_off(figure)


def test_confusion_matrix_of_100_classes_lists_the_worst_pairs_instead_of_numbers(
    figures: list[Figure], tmp_path: Path
) -> None:
    matrix = 90 * np.eye(100, dtype=int)
    matrix[7, 3] = 30
    matrix[12, 99] = 10
    plotting.confusion_matrix(
        matrix, [f"an endlessly long class name {i}" for i in range(100)], tmp_path / "confusion.png"
    )
    figure = figures[0]
    assert not figure.axes[0].texts
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["an endlessly long c…"] * 10
    listed = "\n".join(text.get_text() for text in figure.axes[1].texts)
    assert "25 % (30)" in listed
    assert "10 % (10)" in listed
    assert listed.count("→") == 3  # two pairs, and the heading
    assert_nothing_is_cut_off(figure)


def test_confusion_matrix_needs_one_name_for_each_class(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 class names do not go with a matrix of shape \(3, 3\)"):
        plotting.confusion_matrix(MATRIX, ["cat", "dog"], tmp_path / "confusion.png")
    assert not list(tmp_path.iterdir())


def test_per_class_accuracy_is_sorted_with_intervals(figures: list[Figure], tmp_path: Path) -> None:
    matrix = np.zeros((4, 4), dtype=int)
    matrix[:3, :3] = MATRIX  # the fourth class has no samples
    plotting.per_class_accuracy(matrix, [*NAMES, "absent"], tmp_path / "classes.png")
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dog", "cat", r"costs \$5 or \$6"]
    assert [bar.get_width() for bar in axes.patches] == [100, 80, 50]
    (whiskers,) = axes.collections
    ends = [segment[:, 0].round(1).tolist() for segment in whiskers.get_segments()]
    assert ends == [[72.2, 100.0], [49.0, 94.3], [23.7, 76.3]]
    assert "all classes: 76.7 %" in texts(figures[0])
    assert_nothing_is_cut_off(figures[0])


def test_per_class_accuracy_of_100_classes_shows_both_ends(figures: list[Figure], tmp_path: Path) -> None:
    matrix = np.diag(np.arange(1, 101))
    matrix[:, 0] += np.arange(100)[::-1]  # class i has i + 1 of 100 right
    plotting.per_class_accuracy(matrix, [f"class {i}" for i in range(100)], tmp_path / "classes.png")
    shown = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert len(shown) == 40
    assert "… 60 classes in between …" in texts(figures[0])


@pytest.mark.parametrize("channels_first", [True, False])
def test_misclassified_images_are_the_most_confident_mistakes(
    figures: list[Figure], tmp_path: Path, channels_first: bool
) -> None:
    images = np.zeros((5, 32, 32, 3), dtype=np.uint8)
    images[3, ..., 0] = 200
    shown = images.transpose(0, 3, 1, 2) if channels_first else images
    labels, predictions = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 0, 2])
    plotting.misclassified_images(
        shown, labels, predictions, [1, 0.6, 0.9, 0.974, 1], NAMES, tmp_path / "images.png", max_images=2
    )
    panels = [axes for axes in figures[0].axes if axes.images]
    assert [axes.get_title() for axes in panels] == ["dog →\ncat 97 %", "dog →\ncat 90 %"]
    np.testing.assert_array_equal(panels[0].images[0].get_array(), images[3])
    assert "2 of 3 wrongly classified images: true class → predicted class" in texts(figures[0])


def test_captions_of_long_names_do_not_run_into_each_other(figures: list[Figure], tmp_path: Path) -> None:
    images = np.zeros((5, 32, 32, 3), dtype=np.uint8)
    names = ["an enormously wide name", "another enormous name"]
    plotting.misclassified_images(images, [0] * 5, [1] * 5, [0.9999] * 5, names, tmp_path / "images.png")
    captions = [axes.title.get_window_extent() for axes in figures[0].axes]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(captions))


def test_without_mistakes_the_picture_says_so(figures: list[Figure], tmp_path: Path) -> None:
    images = np.zeros((4, 3, 32, 32), dtype=np.uint8)
    plotting.misclassified_images(images, [0] * 4, [0] * 4, [1.0] * 4, NAMES, tmp_path / "images.png")
    assert "No mistake among 4 images." in texts(figures[0])


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((2, 3, 8, 8)), [0, 0], "found .* float64"),
        (np.zeros((2, 8, 8), dtype=np.uint8), [0, 0], r"found \(2, 8, 8\)"),
        (np.zeros((2, 3, 8, 8), dtype=np.uint8), [0], "must go together, found 2"),
    ],
)
def test_misclassified_images_check_what_they_are_given(tmp_path: Path, images, labels, words) -> None:
    with pytest.raises(ValueError, match=words):
        plotting.misclassified_images(images, labels, [1, 1], [1.0, 1.0], NAMES, tmp_path / "images.png")


def test_comparison_bars_show_mean_spread_and_seeds(figures: list[Figure], tmp_path: Path) -> None:
    rows = [
        {"variant": "plain", "values": {"peak_memory_bytes": [2**20, 3 * 2**20]}},
        {"variant": "sharded", "values": {"peak_memory_bytes": [2**19, 2**19]}},
        {"variant": "diverged", "values": {"peak_memory_bytes": [2**20, "nan"]}},
        {"variant": "skipped", "values": {}},
    ]
    plotting.comparison_bars(rows, "peak_memory_bytes", tmp_path / "bars.png", unit="bytes")
    axes = figures[0].axes[0]
    assert [bar.get_width() for bar in axes.patches] == [2, 0.5]
    assert axes.get_xlim()[0] == 0
    assert axes.get_xlabel() == "peak memory (MiB)"
    assert [text.get_text() for text in axes.texts] == [
        "2 MiB\n± 1.414 MiB",
        "512 KiB\n± 0 bytes",
        "not finite in 1 of 2",
        "no value",
    ]
    assert_nothing_is_cut_off(figures[0])


def test_comparison_of_values_close_together_says_that_the_axis_does_not_begin_at_zero(
    figures: list[Figure], tmp_path: Path
) -> None:
    rows = [
        {"variant": name, "values": {"test_accuracy": values}} for name, values in (("a", [0.9, 0.92]), ("b", [0.93]))
    ]
    plotting.comparison_bars(rows, "test_accuracy", tmp_path / "bars.png", unit="fraction")
    axes = figures[0].axes[0]
    assert not axes.patches
    assert axes.get_xlim()[0] > 80
    assert axes.get_xlabel() == "test accuracy (%) · axis does not begin at 0"


def test_scaling_labels_the_efficiency(figures: list[Figure], tmp_path: Path) -> None:
    plotting.scaling([8, 2, 4], [[300.0, 340.0], [100.0, 100.0], [180.0, 180.0]], tmp_path / "scaling.png")
    assert lines(figures[0], 0)["ideal: proportional"].tolist() == [[2, 100], [4, 200], [8, 400]]
    assert lines(figures[0], 0)["mean"].tolist() == [[2, 100], [4, 180], [8, 320]]
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["100 %", "90 %", "80 %"]
    assert_nothing_is_cut_off(figures[0])


def test_bandwidth_has_a_curve_for_each_collective_on_logarithmic_axes(figures: list[Figure], tmp_path: Path) -> None:
    curves = {"broadcast": [(1024, 2e6), (4096, 5e7)], "all-reduce": [(1024, 1e6), (4096, 2.5e7)]}
    plotting.bandwidth(curves, tmp_path / "bandwidth.png", title="Bandwidth", subtitle="2 processes, gloo, CPU")
    axes = figures[0].axes[0]
    assert lines(figures[0], 0)["all-reduce"].tolist() == [[1024, 0.001], [4096, 0.025]]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1 KiB", "4 KiB"]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 2
    assert_nothing_is_cut_off(figures[0])
    with pytest.raises(ValueError, match="7 curves: must be 1 to 6"):
        plotting.bandwidth({str(i): [(1, 1.0)] for i in range(7)}, tmp_path / "none.png")


def test_forecast_shows_the_series_its_forecasts_and_a_band_over_dates(figures: list[Figure], tmp_path: Path) -> None:
    days = np.arange("2024-01-01", "2024-03-01", dtype="datetime64[D]")
    nothing = np.full(50, np.nan)
    ahead = {name: np.concatenate([nothing, value + np.arange(10)]) for name, value in (("naive", 0), ("costs $5", 2))}
    plotting.forecast(
        days,
        np.arange(60),
        ahead,
        tmp_path / "forecast.png",
        interval=(ahead["naive"] - 3, ahead["naive"] + 3),
        y_label="price ($)",
    )
    axes = figures[0].axes[0]
    drawn = lines(figures[0], 0)
    assert list(drawn) == ["actual", "naive", r"costs \$5"]
    np.testing.assert_array_equal(drawn["actual"][:, 1], np.arange(60))
    np.testing.assert_array_equal(drawn["naive"][:, 1], ahead["naive"])
    (band,) = axes.collections
    box = band.get_datalim(axes.transData)
    assert (box.ymin, box.ymax) == (-3, 12)
    assert band.get_label() == "95 % interval"
    assert {"actual", "95 % interval", "price ($)", "costs $5"} <= set(texts(figures[0]))
    assert "Feb" in [label.get_text() for label in axes.get_xticklabels()]
    assert_nothing_is_cut_off(figures[0])


def test_forecast_of_few_steps_is_marked_and_a_long_one_is_not(figures: list[Figure], tmp_path: Path) -> None:
    short = np.where(np.arange(90) < 85, np.nan, 1.0)
    plotting.forecast(range(90), np.ones(90), {"short": short, "long": np.ones(90)}, tmp_path / "forecast.png")
    actual, few, many = figures[0].axes[0].get_lines()
    assert [line.get_marker() for line in (actual, few, many)] == ["None", "o", ""]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1, 2], [1, 2], {"a": [1]}), r"each of \(2,\) steps; found actual \(2,\), a \(1,\)"),
        (([1, 2], [1], {"a": [1, 2]}), r"found actual \(1,\)"),
        (([1, 2], [1, 2], {}), "0 forecasts: must be 1 to 6"),
        (([1, 2], [1, 2], {str(i): [1, 2] for i in range(7)}), "7 forecasts: must be 1 to 6"),
    ],
)
def test_forecast_checks_what_it_is_given(tmp_path: Path, arguments, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plotting.forecast(*arguments, tmp_path / "forecast.png")


def test_errors_by_horizon_have_a_curve_for_each_forecaster(figures: list[Figure], tmp_path: Path) -> None:
    errors = {f"forecaster {i}": [0.01 * (i + 1), 0.02 * (i + 1), float("nan")] for i in range(9)}
    plotting.errors_by_horizon(errors, tmp_path / "errors.png", unit="fraction")
    axes = figures[0].axes[0]
    np.testing.assert_allclose(lines(figures[0], 0)["forecaster 8"], [[1, 9], [2, 18], [3, np.nan]])
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}
    assert len(looks) == 9
    assert (axes.get_ylabel(), axes.get_xlabel(), axes.get_ylim()[0]) == ("mae (%)", "steps ahead", 0)
    assert axes.get_xticks().tolist() == [1, 2, 3]
    assert_nothing_is_cut_off(figures[0])


def test_errors_close_together_say_that_the_axis_does_not_begin_at_zero(figures: list[Figure], tmp_path: Path) -> None:
    plotting.errors_by_horizon({"a": [1.0] * 28, "b": [1.1] * 28}, tmp_path / "errors.png", metric="mase")
    axes = figures[0].axes[0]
    assert axes.get_ylabel() == "mase · not from 0"
    assert axes.get_ylim()[0] > 0.9
    assert axes.get_xticks().tolist() == [7, 14, 21, 28]


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ({}, "must be 1 to 12 forecasters with errors for the same steps; found none"),
        ({"a": [1.0], "b": [1.0, 2.0]}, "found a: 1, b: 2"),
        ({str(i): [1.0] for i in range(13)}, "must be 1 to 12 forecasters"),
    ],
)
def test_errors_by_horizon_check_what_they_are_given(tmp_path: Path, errors, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plotting.errors_by_horizon(errors, tmp_path / "errors.png")


def test_errors_by_horizon_without_a_finite_value_say_so(figures: list[Figure], tmp_path: Path) -> None:
    plotting.errors_by_horizon({"a": [float("nan")]}, tmp_path / "errors.png")
    assert "No forecaster has a value." in texts(figures[0])


def test_a_picture_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scaling.png"
    path.write_bytes(b"the old picture")

    def broken(self: Figure, *arguments, **options) -> None:
        Path(arguments[0]).write_bytes(b"half a pict")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        plotting.scaling([1], [[100.0]], path)
    assert path.read_bytes() == b"the old picture"
    assert list(tmp_path.iterdir()) == [path]


def test_drawing_neither_obeys_nor_changes_the_settings_of_the_user(figures: list[Figure], tmp_path: Path) -> None:
    with matplotlib.rc_context({"axes.grid": False, "savefig.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        path = plotting.scaling([1], [[100.0]], tmp_path / "scaling.png")
        assert dict(matplotlib.rcParams) == before
    assert imread(path)[0, 0].tolist() == [1, 1, 1, 1]


def test_drawing_leaves_pyplot_alone_and_importing_is_quick(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trainyard_shared import plotting\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plotting.training_curves([], Path({str(tmp_path / 'a.png')!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
