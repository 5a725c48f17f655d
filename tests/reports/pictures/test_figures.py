import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from mediffusion_diffusers.reports.pictures import drawing, figures


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _row(rng, **changes):
    original = rng.random((1, 16, 16)) * 0.5 + 0.2
    counterfactual = original.copy()
    counterfactual[:, 4:8, 4:8] += 0.2
    values = {
        "label": "Mass",
        "action": "added",
        "original": original,
        "counterfactual": counterfactual,
        "null_edit": original,
        "probability": (0.93, 0.04),
    }
    return figures.PanelRow(**{**values, **changes})


def _colours(image):
    return np.asarray(image).reshape(-1, 3).astype(int)


def _has_lime(image):
    return (np.abs(_colours(image) - [0, 255, 0]).sum(1) < 30).any()


def test_panel_grows_with_rows_and_columns(rng):
    box = {"x": 0.25, "y": 0.25, "width": 0.25, "height": 0.25}
    one = figures.panel([_row(rng)])
    two = figures.panel([_row(rng), _row(rng, oracle_probability=(0.8, 0.3), boxes=[box])], "Title")
    wide = figures.panel([_row(rng, truth=np.zeros((1, 16, 16)))])
    assert one.mode == "RGB"
    assert two.height > one.height + 150 and two.width == one.width
    assert wide.width > one.width + 150
    assert not _has_lime(one) and _has_lime(two)
    with pytest.raises(ValueError, match="at least one"):
        figures.panel([])


def test_colour_pictures_fit_in_too(rng):
    colour = _row(rng, original=rng.random((3, 16, 16)), counterfactual=rng.random((3, 16, 16)))
    assert figures.panel([colour]).width > 0


def test_brighter_is_red_and_darker_is_blue(rng):
    grey = np.full((1, 16, 16), 0.5)
    brighter, darker, unchanged = (
        _colours(figures.panel([_row(rng, original=grey, null_edit=grey, counterfactual=grey + change)]))
        for change in (0.2, -0.2, 0.0)
    )

    def reds_minus_blues(colours):
        return np.sum(colours[:, 0] > colours[:, 2] + 60) - np.sum(colours[:, 2] > colours[:, 0] + 60)

    assert reds_minus_blues(brighter) > 20_000
    assert reds_minus_blues(darker) < -20_000
    assert abs(reds_minus_blues(unchanged)) < 5_000  # the colour bar alone, which is symmetric


def test_one_weak_difference_does_not_look_strong():
    assert drawing.difference_limit([np.full((4, 4), 0.001)]) == drawing.MIN_DIFFERENCE_SCALE
    assert drawing.difference_limit([np.zeros((4, 4)), np.full((4, 4), -0.4)]) == pytest.approx(0.4)


def test_learning_curves_draw_what_the_file_holds(tmp_path):
    path = tmp_path / "metrics.jsonl"
    train = [{"kind": "train", "step": step, "diffusion_loss": 1 / step} for step in range(1, 60)]
    validation = [{"kind": "validation", "step": step, "macro_auroc": step / 100} for step in (20, 40)]
    path.write_text("".join(json.dumps(record) + "\n" for record in train))
    one = figures.learning_curves(path)
    path.write_text("".join(json.dumps(record) + "\n" for record in train + validation))
    assert figures.learning_curves(path).width == pytest.approx(2 * one.width, abs=2)
    path.write_text(json.dumps({"kind": "train", "step": 1}) + "\n")
    with pytest.raises(ValueError, match="has none"):
        figures.learning_curves(path)


def test_smoothing_keeps_constants_and_length():
    for length in (1, 2, 19, 40, 101):
        assert figures._smooth([2.0] * length) == pytest.approx(np.full(length, 2.0))


def test_score_changes(rng):
    few = figures.score_change_chart({"Mass": {"a": -0.5, "b": float("nan")}}, "title")
    many = figures.score_change_chart({str(k): {"a": -0.5, "b": 0.1} for k in range(5)}, "title")
    assert many.height > few.height
    with pytest.raises(ValueError, match="at least one group"):
        figures.score_change_chart({}, "title")


def test_pyplot_is_left_alone(rng):
    sys.modules.pop("matplotlib.pyplot", None)
    figures.panel([_row(rng)])
    assert "matplotlib.pyplot" not in sys.modules


def test_a_figure_is_drawn_as_it_would_be_saved():
    with drawing.new_figure(2, 1.5) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1, 2], [1, 0, 2])
        axes.set_title("A title")
        drawn = drawing.to_image(figure)
        figure.savefig(saved := io.BytesIO(), format="png", dpi=drawing.DPI)
    assert drawn.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(Image.open(saved).convert("RGB")))
