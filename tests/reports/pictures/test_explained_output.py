"""What the counterfactual pipeline returns becomes explained images without loss, whatever the output type."""

import numpy as np
import pytest
from support.components import LABELS, random_images, tiny_pipeline

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.reports.pictures.explained_output import explain_output, explain_sweep
from mediffusion_diffusers.reports.pictures.explanations import explanation_panel


FAST = {"num_inference_steps": 2, "strength": 0.2}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(MediffusionCounterfactualPipeline)


@pytest.fixture(scope="module")
def output(pipe):
    return pipe(list(random_images(2)), away=[["Mass"], ["Effusion"]], output_type="np", **FAST)


def test_every_field_is_where_it_belongs(output):
    boxes = [[{"x": 0.1, "y": 0.2, "width": 0.3, "height": 0.4}], []]
    explained = explain_output(output, ["Mass", "Effusion"], "removed", ["a", "b"], boxes)
    assert [one.heading for one in explained] == ["Mass removed", "Effusion removed"]
    assert [one.name for one in explained] == ["a", "b"] and [len(one.boxes) for one in explained] == [1, 0]
    for row, one in enumerate(explained):
        column = LABELS.index(one.label)
        for scored, images, scores in (
            (one.original, output.originals, output.probabilities_before),
            (one.counterfactual, output.images, output.probabilities_after),
            (one.null_edit, output.null_images, output.probabilities_null),
            (one.plain_gradient, output.plain_gradient_images, output.plain_gradient_probabilities),
            (one.random_noise, output.random_noise_images, output.random_noise_probabilities),
        ):
            assert np.array_equal(scored.image[0], images[row, ..., 0].astype(np.float64))
            assert scored.probability == pytest.approx(scores[row, column])
        assert one.difference(one.counterfactual) == pytest.approx(output.difference[row, ..., 0], abs=1e-6)
        assert one.change_size(one.counterfactual) == pytest.approx(output.l1[row], rel=1e-5)
        shares = [one.high_frequency(image) for image in (one.counterfactual, one.plain_gradient, one.random_noise)]
        assert shares == pytest.approx(output.high_frequency_shares[row], rel=1e-4)
        assert one.region is None and explanation_panel(one).mode == "RGB"


@pytest.mark.parametrize(("output_type", "tolerance"), [("pil", 0.5 / 255), ("pt", 1e-6)])
def test_output_types_agree(pipe, output, output_type, tolerance):
    other = pipe(list(random_images(2)), away=[["Mass"], ["Effusion"]], output_type=output_type, **FAST)
    for one, two in zip(
        explain_output(output, "Mass", "removed"), explain_output(other, "Mass", "removed"), strict=True
    ):
        assert one.counterfactual.image == pytest.approx(two.counterfactual.image, abs=tolerance * 1.01)
        assert one.counterfactual.probability == pytest.approx(two.counterfactual.probability, abs=1e-6)


def test_colour_pictures(output):
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline, channels=3)
    images = random_images(1, channels=3)
    (one,) = explain_output(pipe(list(images), away="Mass", output_type="np", **FAST), "Mass", "removed")
    assert one.original.image == pytest.approx(images[0].transpose(2, 0, 1), abs=1e-6)


def test_without_controls_there_are_none(pipe):
    output = pipe(list(random_images(1)), away="Mass", controls=False, **FAST)
    (one,) = explain_output(output, "Mass", "removed")
    assert [name for name, _ in one.changed()] == ["Counterfactual", "Null edit"]


def test_a_region_grows_to_the_pictures_size(pipe):
    mask = np.zeros((16, 16))
    mask[2:8, 4:10] = 1
    output = pipe(list(random_images(2)), away="Mass", mask=mask, **FAST)
    for one in explain_output(output, "Mass", "removed"):
        assert np.array_equal(one.region, mask)


def test_several_scales_of_one_image_are_a_sweep(pipe, output):
    scales = [10.0, 0.0, 5.0]
    swept = pipe(random_images(1)[0], away="Mass", guidance_scale=scales, output_type="np", **FAST)
    explained = explain_sweep(swept, "Mass", "removed")
    assert list(explained.sweep.scales) == sorted(scales)
    assert np.array_equal(explained.sweep.stops[-1].image, explained.counterfactual.image)
    assert explained.sweep.stops[0].image == pytest.approx(explained.null_edit.image, abs=1e-6)
    with pytest.raises(ValueError, match="originals differ"):
        explain_sweep(output, "Mass", "removed")


def test_an_external_classifiers_scores_are_shown_and_its_missing_controls_left_out(output):
    external = type(output)(
        **{
            **output,
            "settings": {**output.settings, "guidance_mode": "external"},
            "external_label_names": ["opacity"],
            **{
                f"external_probabilities_{stage}": np.full((2, 1), p) for stage, p in (("before", 0.9), ("after", 0.2))
            },
            "external_probabilities_null": np.full((2, 1), 0.8),
        }
    )
    one, _ = explain_output(external, "opacity", "removed")
    assert (one.original.probability, one.counterfactual.probability, one.null_edit.probability) == (0.9, 0.2, 0.8)
    assert one.plain_gradient is None and one.random_noise is None


def test_mistakes_have_messages(pipe, output):
    with pytest.raises(ValueError, match="`labels` must be among Cardiomegaly, Effusion, Mass, but got Gout"):
        explain_output(output, "Gout", "removed")
    with pytest.raises(ValueError, match="`labels` must be as many"):
        explain_output(output, ["Mass"], "removed")
    with pytest.raises(ValueError, match="`names` must be as many"):
        explain_output(output, "Mass", "removed", names=["a"])
    latents = pipe(list(random_images(2)), away="Mass", output_type="latent", **FAST)
    with pytest.raises(ValueError, match="other than 'latent'"):
        explain_output(latents, "Mass", "removed")
