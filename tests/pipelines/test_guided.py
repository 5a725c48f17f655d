"""Generation: limits that must hold exactly, and the steering itself."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from support.components import (
    MULTI_LABEL,
    PROBLEM_TYPES,
    SINGLE_LABEL,
    generators,
    tiny_components,
    tiny_pipeline,
    tiny_scheduler,
)

from mediffusion_diffusers import MediffusionGuidedPipeline
from mediffusion_diffusers.guidance import OWN_GUIDANCE_MODES


SCHEDULERS = ("ddim", "ddpm")
SHAPE = (2, 4, 8, 8)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(MediffusionGuidedPipeline)


def plain_loop(components, noise, num_steps, **step_kwargs):
    """The loop of diffusers' own unconditional pipelines."""
    scheduler, latents = components["scheduler"], noise
    scheduler.set_timesteps(num_steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = components["unet"](latents, t, return_logits=False).sample
            latents = scheduler.step(output, t, latents, **step_kwargs).prev_sample
    return latents


class TestScaleZero:
    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
    @pytest.mark.parametrize("scheduler, eta", [("ddim", 0.0), ("ddim", 0.7), ("ddpm", 0.0)])
    def test_is_the_plain_loop(self, scheduler, eta, prediction_type):
        components = tiny_components(scheduler)
        components["scheduler"] = tiny_scheduler(scheduler, prediction_type=prediction_type)
        pipe = MediffusionGuidedPipeline(**components)
        pipe.set_progress_bar_config(disable=True)
        (generator,) = generators(3)
        noise = torch.randn(SHAPE, generator=generator)
        step_kwargs = {"generator": generator, **({"eta": eta} if scheduler == "ddim" else {})}
        expected = plain_loop(components, noise, 4, **step_kwargs)
        for towards in (None, "Mass"):
            output = pipe(
                towards=towards,
                guidance_scale=0,
                num_images=2,
                num_inference_steps=4,
                eta=eta,
                generator=generators(3)[0],
                output_type="latent",
            )
            assert torch.equal(output.images, expected)

    def test_without_a_target_nothing_is_guided(self, pipe):
        plain, zero = (
            pipe(num_inference_steps=2, generator=generators(0)[0], output_type="pt", **arguments).images
            for arguments in ({}, {"towards": "Mass", "guidance_scale": 0})
        )
        assert torch.equal(plain, zero)

    def test_global_seed_decides_without_a_generator(self, pipe):
        results = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            results.append(pipe(num_inference_steps=2, output_type="latent").images)
        assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


class TestSteering:
    @pytest.mark.parametrize("direction", ["towards", "away"])
    @pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
    @pytest.mark.parametrize("mode", OWN_GUIDANCE_MODES)
    def test_moves_the_probability(self, mode, problem_type, direction):
        pipe = tiny_pipeline(MediffusionGuidedPipeline, problem_type=problem_type)
        output = pipe(
            **{direction: "Mass"},
            guidance_scale=[0.0, 20.0, 100.0],
            guidance_mode=mode,
            num_images=3,
            num_inference_steps=5,
            generator=generators(0)[0],
            output_type="latent",
        )
        sign = 1 if direction == "towards" else -1
        # On average: this untrained head says something else at each noise level.
        p = output.probabilities[:, :, 2].mean(dim=1)
        assert sign * (p[1] - p[0]) > 0 and sign * (p[2] - p[1]) > 0

    def test_one_target_per_image(self, pipe):
        arguments = {"guidance_scale": 10.0, "num_inference_steps": 3, "output_type": "latent"}
        both = pipe(towards=[["Mass"], []], away=[[], [0]], num_images=2, generator=generators(0, 1), **arguments)
        first = pipe(towards="Mass", generator=generators(0), **arguments)
        second = pipe(away="Cardiomegaly", generator=generators(1), **arguments)
        torch.testing.assert_close(both.images, torch.cat([first.images, second.images]), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("mode", OWN_GUIDANCE_MODES)
    @pytest.mark.parametrize("scheduler", SCHEDULERS)
    def test_batch_is_single(self, scheduler, mode):
        pipe = tiny_pipeline(MediffusionGuidedPipeline, scheduler=scheduler)
        arguments = {
            "towards": "Mass",
            "guidance_scale": 10.0,
            "guidance_mode": mode,
            "num_inference_steps": 3,
            "output_type": "pt",
        }
        batch = pipe(num_images=3, generator=generators(0, 1, 2), **arguments)
        for seed in range(3):
            single = pipe(generator=generators(seed), **arguments)
            torch.testing.assert_close(single.images[0], batch.images[seed], atol=1e-5, rtol=0)
            torch.testing.assert_close(single.probabilities[0], batch.probabilities[seed], atol=1e-5, rtol=0)


class TestSweep:
    @pytest.mark.parametrize("scheduler, eta", [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)])
    @pytest.mark.parametrize("seeds", [(4,), (4, 5)])
    def test_equals_single_runs(self, scheduler, eta, seeds):
        pipe = tiny_pipeline(MediffusionGuidedPipeline, scheduler=scheduler)
        make_generator = lambda: generators(4)[0] if len(seeds) == 1 else generators(*seeds)  # noqa: E731
        arguments = {"towards": "Mass", "num_images": 2, "num_inference_steps": 3, "eta": eta, "output_type": "pt"}
        sweep = pipe(guidance_scale=[0.0, 5.0, 50.0], generator=make_generator(), **arguments)
        assert sweep.images.shape[:2] == (3, 2) and sweep.probabilities.shape == (3, 2, 3)
        for index, scale in enumerate((0.0, 5.0, 50.0)):
            single = pipe(guidance_scale=scale, generator=make_generator(), **arguments)
            assert torch.equal(single.images, sweep.images[index])
            assert torch.equal(single.probabilities, sweep.probabilities[index])

    @pytest.mark.parametrize("generator", [None, "shared"])
    def test_step_noise_is_the_same_for_every_scale(self, generator):
        pipe = tiny_pipeline(MediffusionGuidedPipeline, scheduler="ddpm")
        if generator == "shared":
            generator = generators(0) * 2  # one generator for two images
        output = pipe(
            guidance_scale=[0.0, 0.0], num_images=2, num_inference_steps=3, generator=generator, output_type="latent"
        )
        assert torch.equal(output.images[0], output.images[1])

    @pytest.mark.parametrize("output_type, kind", [("pil", list), ("np", np.ndarray), ("pt", torch.Tensor)])
    def test_types(self, pipe, output_type, kind):
        output = pipe(guidance_scale=[0.0, 0.0], num_images=2, num_inference_steps=1, output_type=output_type)
        assert isinstance(output.images, kind) and len(output.images) == 2 and len(output.images[0]) == 2

    def test_one_scale_in_a_list_keeps_the_axis(self, pipe):
        output = pipe(towards="Mass", guidance_scale=[1.0], num_inference_steps=1, output_type="pt")
        assert output.images.shape == (1, 1, 1, 16, 16)


class TestOutput:
    def test_images_and_their_probabilities(self, pipe):
        output = pipe(towards="Mass", num_images=2, num_inference_steps=3, guidance_scale=5.0, output_type="pt")
        assert output.images.shape == (2, 1, 16, 16) and output.images.min() >= 0 and output.images.max() <= 1
        assert output.label_names == ["Cardiomegaly", "Effusion", "Mass"]
        latents = pipe.encode_images(output.images)
        torch.testing.assert_close(
            output.probabilities, pipe.logits_to_probabilities(pipe.classify_latents(latents)).detach()
        )

    def test_timesteps_are_the_schedulers(self, pipe):
        scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(7)
        assert pipe(num_inference_steps=7).timesteps == scheduler.timesteps.tolist()

    def test_given_latents_are_the_start(self, pipe):
        noise = torch.randn(1, 4, 8, 8, generator=generators(5)[0])
        given = pipe(latents=noise, num_inference_steps=2, output_type="latent").images
        drawn = pipe(generator=generators(5)[0], num_inference_steps=2, output_type="latent").images
        assert torch.equal(given, drawn)

    def test_defaults_come_from_the_checkpoint(self):
        defaults = {"guidance_scale": 7.0, "guidance_mode": "x0"}
        pipe = tiny_pipeline(MediffusionGuidedPipeline, guidance_defaults=defaults)
        arguments = {"towards": "Mass", "num_inference_steps": 2, "output_type": "latent"}
        default = pipe(generator=generators(0)[0], **arguments).images
        assert pipe.guidance_scale == 7.0
        assert torch.equal(default, pipe(generator=generators(0)[0], **defaults, **arguments).images)
        other = pipe(generator=generators(0)[0], guidance_scale=7.0, guidance_mode="zt", **arguments).images
        assert not torch.equal(default, other)

    def test_a_default_per_direction(self):
        defaults = {"guidance_scale": {"towards": 7.0, "away": 5.0}}
        pipe = tiny_pipeline(MediffusionGuidedPipeline, guidance_defaults=defaults)
        for labels, scale in (({"towards": 0}, 7.0), ({"away": 0}, 5.0), ({"towards": 0, "away": 1}, 5.0), ({}, 0.0)):
            pipe(**labels, num_inference_steps=1, output_type="latent")
            assert pipe.guidance_scale == scale


class TestMistakes:
    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"num_images": 0}, "`num_images` must be a whole number at least 1, but got 0"),
            ({"towards": "Mass", "guidance_scale": -1.0}, "`guidance_scale` must be a number at least 0"),
            ({"towards": "Mass", "guidance_scale": float("nan")}, "`guidance_scale` must be a number at least 0"),
            (
                {"towards": "Mass", "guidance_scale": [1.0, float("inf")]},
                "`guidance_scale` must be a number at least 0, but got inf",
            ),
            ({"towards": "Mass", "guidance_scale": []}, "`guidance_scale` as a list must hold at least one scale"),
            ({"towards": "Mass", "guidance_scale": "5"}, "`guidance_scale` must be a number at least 0, but got '5'"),
            ({"towards": "Mass", "guidance_scale": np.ones((2, 2))}, "must be a number at least 0, but got \\["),
            (
                {"num_inference_steps": 2.5},
                r"`num_inference_steps` must be a whole number in \[1, 1000\], but got 2.5",
            ),
            ({"guidance_scale": 5.0}, "needs a label in `towards` or `away`. Known labels: Cardiomegaly"),
            ({"num_inference_steps": 0}, r"`num_inference_steps` must be a whole number in \[1, 1000\]"),
            ({"num_inference_steps": 1001}, r"`num_inference_steps` must be a whole number in \[1, 1000\]"),
            ({"eta": 1.5}, r"`eta` must be a number in \[0, 1\]"),
            ({"guidance_mode": "xt"}, "`guidance_mode` must be one of"),
            ({"latents": torch.zeros(1, 4, 8, 9)}, r"`latents` must have the latents' shape \(1, 4, 8, 8\)"),
            (
                {"num_images": 2, "latents": torch.zeros(1, 4, 8, 8)},
                r"`latents` must have the latents' shape \(2, 4, 8, 8\)",
            ),
            ({"num_images": 2, "generator": generators(0)}, "one generator per image, 2, but holds 1"),
            ({"output_type": "jpg"}, "`output_type` must be one of"),
            ({"callback_on_step_end_tensor_inputs": ["noise"]}, "must be among"),
            ({"towards": "Hernia"}, "unknown label 'Hernia'"),
            ({"towards": "Mass", "away": "Mass"}, "named in both"),
            ({"towards": [["Mass"], ["Mass"]]}, "each of the 1 images"),
        ],
    )
    def test_message(self, pipe, arguments, message):
        with pytest.raises(ValueError, match=message):
            pipe(**arguments)

    def test_two_classes_for_a_single_label_model(self):
        pipe = tiny_pipeline(MediffusionGuidedPipeline, problem_type=SINGLE_LABEL)
        with pytest.raises(ValueError, match="one class per image"):
            pipe(towards=["Mass", "Effusion"])
        assert tiny_pipeline(MediffusionGuidedPipeline, problem_type=MULTI_LABEL)(
            towards=["Mass", "Effusion"], num_inference_steps=1
        ).images
