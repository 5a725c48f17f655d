"""Some images, explained from file to page."""

import pytest
from PIL import Image
from support.components import random_pil, tiny_pipeline

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.commands.explain_images import main
from mediffusion_diffusers.reports.image_explanations import explain_images, write_explanations


FAST = {"num_inference_steps": 3, "guidance_scale": 40.0}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(MediffusionCounterfactualPipeline)


def test_sweep_ends_at_the_scale(pipe):
    (explained,), used = explain_images(pipe, random_pil(1), "Mass", "removed", **FAST)
    assert explained.sweep.scales == [0.0, 10.0, 20.0, 40.0] and used["guidance_scale"] == 40.0
    probabilities = [stop.probability for stop in explained.sweep.stops]
    assert probabilities == sorted(probabilities, reverse=True)
    assert explained.counterfactual.probability == probabilities[-1] < explained.original.probability
    whole = pipe(random_pil(1), away="Mass", **FAST, output_type="np")
    assert explained.counterfactual.probability == pytest.approx(whole.probabilities_after[0, 2], abs=1e-5)


def test_sweep_ends_at_the_scale_that_was_found(pipe):
    goal = float(pipe(random_pil(1), away="Mass", **FAST, output_type="np").probabilities_after[0, 2]) + 1e-3
    (explained,), used = explain_images(pipe, random_pil(1), "Mass", "removed", target_probability=goal, **FAST)
    assert explained.counterfactual.probability <= goal
    assert explained.sweep.scales[-1] == used["guidance_scale"] <= 40.0


def test_unknown_action(pipe):
    with pytest.raises(ValueError, match="`action` must be 'removed' or 'added', but got 'away'"):
        explain_images(pipe, random_pil(1), "Mass", "away")


def test_page_panels_and_animations_of_a_file(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    random_pil(1)[0].save(tmp_path / "JOHN_DOE.png")
    places = [tmp_path / "JOHN_DOE.png", "--pretrained_model_name_or_path", tmp_path / "model"]
    options = ["--towards", "Mass", "--output_dir", tmp_path / "out", "--num_inference_steps", "2", "--device", "cpu"]
    assert main([str(each) for each in (*places, *options)]) == 0
    page = (tmp_path / "out/explanations.html").read_text()
    assert "Mass" in page and "JOHN" not in page and str(tmp_path) not in page
    assert Image.open(tmp_path / "out/panel-1.png").width > 500
    assert Image.open(tmp_path / "out/sweep-1.gif").n_frames == 6  # four scales, there and back


def test_page_names_no_file(pipe, tmp_path):
    explained, used = explain_images(pipe, random_pil(2), "Mass", "removed", **FAST)
    page = write_explanations(explained, tmp_path, used).read_text()
    assert "Image 1" in page and "Image 2" in page
