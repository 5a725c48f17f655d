"""The smallest guidance scale that reaches a goal."""

from dataclasses import replace

import pytest
import torch
from support.components import PROBLEM_TYPES, generators, random_images, tiny_pipeline

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.pipelines.call_state import CallState
from mediffusion_diffusers.pipelines.counterfactual.editor import Sample, Watch
from mediffusion_diffusers.pipelines.counterfactual.question import Question
from mediffusion_diffusers.pipelines.counterfactual.search import ScaleSearch, has_reached, strength_ladder
from mediffusion_diffusers.pipelines.counterfactual.start import AddedNoise


FAST = {"num_inference_steps": 4, "strength": 0.2, "output_type": "pt", "controls": False}


def run_search(thresholds, initial_scale, max_scale, **arguments):
    """Search where row i reaches its goal from the scale `thresholds[i]` on."""
    initial, largest = (torch.as_tensor(bound) * torch.ones(len(thresholds)) for bound in (initial_scale, max_scale))
    search = ScaleSearch(initial, largest, **arguments)
    tried = [[] for _ in thresholds]
    while len(search.active):
        rows, scales = search.active, search.scales
        for row, scale in zip(rows.tolist(), scales.tolist(), strict=True):
            tried[row].append(scale)
        search.update(scales >= thresholds[rows])
    return search, tried


class TestScaleSearch:
    @pytest.mark.parametrize("tolerance", [1.05, 1.25, 2.0])
    def test_finds_the_smallest_scale_within_tolerance(self, tolerance):
        thresholds = torch.tensor([0.3, 3.0, 9.9, 10.0, 10.1, 77.0, 320.0])
        search, tried = run_search(thresholds, initial_scale=10.0, max_scale=320.0, tolerance=tolerance)
        assert search.reached.all()
        assert (search.high >= thresholds).all() and (search.high <= tolerance * thresholds).all()
        assert max(len(scales) for scales in tried) < 16

    def test_says_what_it_did_not_reach(self):
        search, tried = run_search(torch.tensor([5.0, 321.0, torch.inf]), initial_scale=10.0, max_scale=320.0)
        assert search.reached.tolist() == [True, False, False]
        assert max(tried[1]) == max(tried[2]) == 320.0

    def test_rows_leave_one_by_one(self):
        _, tried = run_search(torch.tensor([10.0, 300.0]), initial_scale=10.0, max_scale=320.0)
        assert len(tried[0]) != len(tried[1])

    def test_rows_are_independent(self):
        thresholds = torch.tensor([0.7, 33.0, torch.inf])
        initial, largest = torch.tensor([10.0, 2.0, 64.0]), torch.tensor([320.0, 64.0, 2048.0])
        together, tried = run_search(thresholds, initial, largest)
        for row in range(3):
            alone, (scales,) = run_search(thresholds[row : row + 1], initial[row], largest[row])
            assert alone.high[0] == together.high[row] and scales == tried[row]

    def test_a_tiny_threshold_ends_at_the_smallest_scale(self):
        search, _ = run_search(torch.zeros(1), initial_scale=10.0, max_scale=320.0)
        assert search.high[0] == 10.0 / 64


def test_ladder_ends_at_the_largest_strength():
    assert strength_ladder(0.3, 0.3) == [0.3]
    ladder = strength_ladder(0.2, 0.5)
    assert ladder[0] == 0.2 and ladder[-1] == 0.5 and sorted(set(ladder)) == ladder


@pytest.mark.parametrize("target_probability", [0.1, 0.9])
def test_goal(target_probability):
    direction = torch.tensor([[1, -1, 0]] * 4)
    probabilities = torch.tensor([[0.95, 0.05, 0.5], [0.85, 0.05, 0.5], [0.95, 0.15, 0.5], [0.91, 0.09, 1.0]])
    assert has_reached(probabilities.double(), direction, target_probability).tolist() == [True, False, False, True]


class TestPipeline:
    @pytest.fixture(scope="class", params=[*PROBLEM_TYPES])
    def pipe(self, request):
        return tiny_pipeline(MediffusionCounterfactualPipeline, problem_type=request.param)

    @pytest.fixture(scope="class")
    def goal(self, pipe):
        """A probability that some scales reach, and not the null edit."""
        output = pipe(random_images(3), away="Mass", guidance_scale=[0.0, 300.0] * 3, **FAST)
        null, far = output.probabilities_after[::2, 2], output.probabilities_after[1::2, 2]
        assert (far < null).all()
        goal = float((far.max() + null.min()) / 2) if far.max() < null.min() else float(far.max() + 1e-4)
        assert goal < 0.5
        return goal

    def test_reaches_the_goal_with_the_smallest_scale(self, pipe, goal):
        images = random_images(3)
        arguments = {"away": "Mass", "target_probability": goal, **FAST}
        output = pipe(images, guidance_scale=20.0, **arguments)
        assert output.reached.all()
        assert (output.probabilities_after[:, 2] <= goal).all()
        # The same image at the scale found gives the same picture; at less of it, the goal is missed.
        scales = output.guidance_scales.tolist()
        again = pipe(images, away="Mass", guidance_scale=scales, **FAST)
        torch.testing.assert_close(again.images, output.images, atol=1e-5, rtol=0)
        less = pipe(images, away="Mass", guidance_scale=[scale / 1.3 for scale in scales], **FAST)
        guided = output.guidance_scales > 0
        assert (less.probabilities_after[guided, 2] > goal - 1e-6).all()

    @pytest.mark.parametrize("start", ["inversion", "noise"])
    @pytest.mark.parametrize("follow", [True, False])
    def test_batch_is_single(self, pipe, goal, start, follow):
        if follow and start == "noise":
            pytest.skip("there is no path to follow")
        arguments = {"away": "Mass", "target_probability": goal, "start": start, "follow_inversion": follow, **FAST}
        batch = pipe(random_images(3), generator=generators(0, 1, 2), **arguments)
        for index in range(3):
            single = pipe(random_images(3)[index], generator=generators(index), **arguments)
            assert single.guidance_scales[0] == batch.guidance_scales[index]
            torch.testing.assert_close(single.images[0], batch.images[index], atol=1e-5, rtol=0)

    def test_rows_left_in_the_search_keep_their_images_noise(self):
        """Two rows of the second of two images: as many rows as images, and yet not one for each."""
        ddpm = tiny_pipeline(MediffusionCounterfactualPipeline, scheduler="ddpm")
        settings = ddpm.resolve_settings(start="noise", strength=0.2, num_inference_steps=4, guidance_scale=20.0)
        latents, watch = ddpm.encode_images(random_images(2)), Watch(CallState(), iter)
        start = AddedNoise(ddpm.scheduler, latents, torch.ones_like(latents)).begin(torch.arange(2), 0.2, iter)
        labels = (ddpm.label_names, ddpm.unet.config.problem_type)
        question = Question.of(2, None, [["Mass"], ["Effusion"]], settings, *labels)
        editor = Sample(ddpm.unet, ddpm.scheduler, settings)
        both = editor.edit(start, replace(question, image_index=torch.tensor([1, 1])), generators(0, 1), watch)
        second = replace(start, latents=start.latents[1:])
        for row in range(2):
            alone = replace(question.select(torch.tensor([row])), image_index=torch.tensor([0]))
            edited = editor.edit(second, alone, generators(1), watch)
            torch.testing.assert_close(edited.latents[0], both.latents[row], atol=1e-5, rtol=0)

    def test_directions_have_bounds_of_their_own(self):
        """A removal beside an addition ends where it ends alone, though the addition's scale is far smaller."""
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline)
        arguments = {**FAST, "guidance_scale": {"away": 64.0, "towards": 1.0}, "target_probability": 1e-6}
        both = pipe(random_images(1), away=[["Mass"], []], towards=[[], ["Mass"]], **arguments)
        alone = [pipe(random_images(1), **{name: "Mass"}, **arguments) for name in ("away", "towards")]
        assert both.guidance_scales.tolist() == [2048.0, 32.0]
        assert [float(output.guidance_scales[0]) for output in alone] == [2048.0, 32.0]
        for row, output in enumerate(alone):
            torch.testing.assert_close(both.images[row], output.images[0], atol=1e-5, rtol=0)

    def test_a_scale_that_overflows_is_no_answer(self):
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline)
        search = {"target_probability": 1e-9, "guidance_scale": 1e30, "max_guidance_scale": 1e38}
        output = pipe(random_images(1), away="Mass", **FAST, **search)
        assert not output.reached[0] and torch.isfinite(output.images).all()
        assert torch.isfinite(output.probabilities_after).all()

    def test_no_guidance_where_none_is_needed(self, pipe):
        output = pipe(random_images(2), away="Mass", target_probability=0.5, guidance_scale=5.0, **FAST)
        easy = output.probabilities_null[:, 2] <= 0.5
        assert easy.any()
        assert (output.guidance_scales[easy] == 0).all() and output.reached[easy.numpy()].all()

    def test_says_what_cannot_be_reached(self, pipe):
        output = pipe(
            random_images(2), away="Mass", target_probability=1e-6, guidance_scale=1.0, max_guidance_scale=2.0, **FAST
        )
        assert not output.reached.any()
        assert (output.guidance_scales == 2.0).all() and torch.allclose(output.strengths, torch.tensor(0.2))

    def test_goes_on_to_higher_strengths(self, pipe):
        bounds = {"guidance_scale": 1.0, "max_guidance_scale": 2.0, "max_strength": 0.5}
        output = pipe(random_images(2), away="Mass", target_probability=1e-6, **bounds, **FAST)
        assert not output.reached.any() and torch.allclose(output.strengths, torch.tensor(0.5))
        alone = pipe(random_images(2), away="Mass", guidance_scale=2.0, **{**FAST, "strength": 0.5})
        torch.testing.assert_close(alone.images, output.images, atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.null_images, output.null_images, atol=1e-5, rtol=0)

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"target_probability": 1.0}, r"must be a number in \(0, 1\), but got 1.0"),
            ({"target_probability": 0.1, "guidance_scale": 0}, "above 0, and no list"),
            ({"target_probability": 0.1, "guidance_scale": [1.0, 2.0]}, "above 0, and no list"),
            ({"target_probability": 0.1, "max_guidance_scale": 1.0, "guidance_scale": 2.0}, "where the search begins"),
            ({"target_probability": 0.1, "max_strength": 0.1}, "where the search begins"),
            ({"target_probability": 0.1, "max_strength": 1.5}, r"`max_strength` must be a number in \(0, 1\]"),
            ({"max_strength": 0.5}, "give `target_probability`"),
        ],
    )
    def test_mistakes(self, pipe, arguments, message):
        with pytest.raises(ValueError, match=message):
            pipe(random_images(2), away="Mass", **{**FAST, **arguments})
