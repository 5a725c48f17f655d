"""Counterfactuals: the null edit as a limit, both starts, the steering, and every mistake with its message."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.components import (
    PROBLEM_TYPES,
    SINGLE_LABEL,
    generators,
    random_images,
    random_pil,
    tiny_components,
    tiny_pipeline,
)

from mediffusion_diffusers import MediffusionCounterfactualPipeline, MultistepDDIMScheduler
from mediffusion_diffusers.guidance import OWN_GUIDANCE_MODES
from mediffusion_diffusers.schedulers import time_grid


# Scheduler, start and eta: every way through the pipeline.
ROUTES = {
    "ddim-inversion": ("ddim", {"start": "inversion"}),
    "ddim-inversion-first-order": ("ddim", {"start": "inversion", "solver_order": 1}),
    "ddim-noise": ("ddim", {"start": "noise"}),
    "ddim-noise-eta": ("ddim", {"start": "noise", "eta": 1.0}),
    "ddpm-noise": ("ddpm", {"start": "noise"}),
}
FAST = {"num_inference_steps": 3, "strength": 0.2}


@pytest.fixture(scope="module")
def pipes():
    return {name: tiny_pipeline(MediffusionCounterfactualPipeline, scheduler=name) for name in ("ddim", "ddpm")}


@pytest.fixture(scope="module")
def pipe(pipes):
    return pipes["ddim"]


@pytest.fixture(params=ROUTES.values(), ids=ROUTES)
def route(request, pipes):
    """A pipeline and the arguments that choose one way through it."""
    scheduler, arguments = request.param
    return pipes[scheduler], {**FAST, **arguments}


class TestNullEdit:
    def test_scale_zero_is_the_null_edit(self, route):
        pipe, arguments = route
        for generator in (None, generators(0)[0], generators(0, 1), generators(0) * 2):
            output = pipe(
                random_pil(2), away="Mass", guidance_scale=0, generator=generator, output_type="latent", **arguments
            )
            assert torch.equal(output.images, output.null_images)
            assert torch.equal(output.probabilities_after, output.probabilities_null)
            assert output.null_difference.eq(0).all()

    def test_does_not_depend_on_the_guidance(self, route):
        pipe, arguments = route
        first, second = (
            pipe(
                random_pil(2),
                towards=towards,
                guidance_scale=scale,
                generator=generators(0)[0],
                output_type="pt",
                **arguments,
            )
            for towards, scale in (("Mass", 5.0), ("Effusion", 50.0))
        )
        assert torch.equal(first.null_images, second.null_images)
        assert not torch.equal(first.images, second.images)

    @pytest.mark.parametrize("given_noise", [True, False])
    def test_from_noise_is_the_plain_ddpm_loop(self, pipes, given_noise):
        components = tiny_components("ddpm")
        images, (generator,) = random_images(2), generators(7)
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()) * 2 - 1
        clean = components["vae"].encode(pixels).latent_dist.mode() * components["vae"].config.scaling_factor
        noise = torch.randn(clean.shape, generator=generator)
        latents = components["scheduler"].add_noise(clean, noise, torch.tensor([200, 200]))
        components["scheduler"].set_timesteps(timesteps=[200, 150, 100, 50])
        with torch.no_grad():
            for t in components["scheduler"].timesteps:
                output = components["unet"](latents, t, return_logits=False).sample
                latents = components["scheduler"].step(output, t, latents, generator=generator).prev_sample

        (generator,) = generators(7)
        if given_noise:
            noise = torch.randn(clean.shape, generator=generator)
        output = pipes["ddpm"](
            images,
            away="Mass",
            guidance_scale=0,
            start="noise",
            strength=0.2,
            num_inference_steps=4,
            noise=noise if given_noise else None,
            generator=generator,
            output_type="latent",
        )
        assert output.timesteps == [200, 150, 100, 50]
        assert torch.equal(output.images, latents) and torch.equal(output.null_images, latents)

    def test_every_ddpm_timestep(self, pipes):
        output = pipes["ddpm"](
            random_pil(1), away="Mass", start="noise", strength=0.005, num_inference_steps=5, guidance_scale=0
        )
        assert output.timesteps == [5, 4, 3, 2, 1]

    @pytest.mark.parametrize("solver_order", [1, 2])
    def test_inversion_returns_the_image_as_steps_grow(self, pipe, solver_order):
        errors = []
        for num_steps in (4, 8, 24):
            output = pipe(
                random_images(2),
                away="Mass",
                guidance_scale=0,
                strength=0.2,
                num_inference_steps=num_steps,
                solver_order=solver_order,
                output_type="latent",
            )
            errors.append((output.null_images - output.originals).abs().mean().item())
        assert errors[0] > errors[1] > errors[2]
        assert errors[2] < 0.3 * errors[0]

    def test_inversion_is_deterministic_and_leaves_the_global_generator_alone(self, pipe):
        state = torch.get_rng_state()
        first, second = (pipe(random_pil(1), away="Mass", output_type="pt", **FAST).images for _ in range(2))
        assert torch.equal(first, second)
        assert torch.equal(torch.get_rng_state(), state)

    def test_more_inversion_steps_are_taken(self, pipe):
        arguments = {"away": "Mass", "guidance_scale": 0, "strength": 0.2, "output_type": "latent"}
        same, default, more = (
            pipe(random_pil(1), num_inference_steps=4, num_inversion_steps=steps, **arguments)
            for steps in (4, None, 16)
        )
        assert torch.equal(same.images, default.images) and not torch.equal(same.images, more.images)
        assert more.settings["num_inversion_steps"] == 16 and len(more.timesteps) == 4


class TestSteering:
    @pytest.mark.parametrize("direction", ["towards", "away"])
    @pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
    @pytest.mark.parametrize("mode", OWN_GUIDANCE_MODES)
    @pytest.mark.parametrize("scheduler, start", [("ddim", "inversion"), ("ddim", "noise"), ("ddpm", "noise")])
    def test_moves_the_probability(self, scheduler, start, mode, problem_type, direction):
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline, scheduler=scheduler, problem_type=problem_type)
        output = pipe(
            random_images(2),
            **{direction: "Mass"},
            start=start,
            guidance_mode=mode,
            guidance_scale=20.0,
            strength=0.1,
            num_inference_steps=4,
            generator=generators(0)[0],
            output_type="latent",
        )
        gain = output.probabilities_after[:, 2] - output.probabilities_null[:, 2]
        assert (gain > 0).all() if direction == "towards" else (gain < 0).all()

    def test_towards_and_away_together(self, pipe):
        arguments = {"guidance_mode": "x0_detached", "guidance_scale": 50.0, "output_type": "latent", **FAST}
        output = pipe(random_images(2), towards="Mass", away="Effusion", **arguments)
        log_prob = [
            p[:, 2].log() + (1 - p[:, 1]).log() for p in (output.probabilities_null, output.probabilities_after)
        ]
        assert (log_prob[1] > log_prob[0] + 0.01).all()
        # It is not what one of them alone gives.
        alone = pipe(random_images(2), towards="Mass", **arguments)
        assert (output.probabilities_after[:, 1] < alone.probabilities_after[:, 1]).all()

    @pytest.mark.parametrize("mode", OWN_GUIDANCE_MODES)
    def test_batch_is_single(self, route, mode):
        pipe, arguments = route
        images = random_pil(3)
        arguments = {**arguments, "guidance_mode": mode, "guidance_scale": 10.0, "output_type": "pt"}
        batch = pipe(images, away=[["Mass"], [0], ["Effusion"]], generator=generators(0, 1, 2), **arguments)
        for index, label in enumerate(("Mass", "Cardiomegaly", "Effusion")):
            single = pipe(images[index], away=label, generator=generators(index), **arguments)
            for name in ("images", "null_images", "difference", "probabilities_after", "probabilities_null"):
                torch.testing.assert_close(single[name][0], batch[name][index], atol=1e-5, rtol=0)


class TestOutput:
    @pytest.mark.parametrize("vae, channels", [("space_to_depth", 1), ("space_to_depth", 3), ("kl", 1), ("kl", 3)])
    def test_consistent(self, vae, channels):
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline, vae=vae, channels=channels)
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
        output = pipe([image] * 2, away="Mass", guidance_scale=5.0, output_type="pt", **FAST)
        assert output.images.shape == (2, channels, 16, 16) and output.image_size == (16, 16)
        torch.testing.assert_close(output.originals[0], pipe.image_processor.preprocess(image, 16, 16)[0] * 0.5 + 0.5)
        torch.testing.assert_close(output.difference, output.images - output.originals)
        torch.testing.assert_close(output.null_difference, output.images - output.null_images)
        assert output.difference.min() < 0 < output.difference.max()  # signed
        # The probabilities are those of the pictures that are returned.
        for name, pictures in (
            ("probabilities_before", output.originals),
            ("probabilities_after", output.images),
            ("probabilities_null", output.null_images),
        ):
            logits = pipe.classify_latents(pipe.encode_images(pictures))
            torch.testing.assert_close(output[name], pipe.logits_to_probabilities(logits).detach())

    @pytest.mark.parametrize("channels", [1, 3])
    def test_types(self, channels):
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline, channels=channels)
        outputs = {
            kind: pipe(random_pil(2), away="Mass", guidance_scale=5.0, output_type=kind, **FAST)
            for kind in ("pil", "np", "pt", "latent")
        }
        for name in ("images", "null_images", "originals"):
            assert [picture.mode for picture in outputs["pil"][name]] == ["L" if channels == 1 else "RGB"] * 2
            assert outputs["np"][name].shape == (2, 16, 16, channels)
            np.testing.assert_allclose(outputs["np"][name].transpose(0, 3, 1, 2), outputs["pt"][name].numpy())
            np.testing.assert_allclose(
                np.stack([np.asarray(picture) for picture in outputs["pil"][name]]).reshape(2, 16, 16, channels) / 255,
                outputs["np"][name],
                atol=0.51 / 255,
            )
            assert outputs["latent"][name].shape == (2, 4 * channels, 8, 8)
        for name in ("difference", "null_difference"):
            assert outputs["pil"][name].shape == (2, 16, 16, channels)
            np.testing.assert_array_equal(outputs["pil"][name], outputs["np"][name])
        for kind, array in (("pil", np.ndarray), ("np", np.ndarray), ("pt", torch.Tensor), ("latent", torch.Tensor)):
            assert all(
                isinstance(outputs[kind][name], array)
                for name in ("difference", "probabilities_before", "probabilities_after", "probabilities_null")
            )

    def test_timesteps_and_settings(self, pipe):
        output = pipe(random_pil(1), away="Mass", strength=0.3, num_inference_steps=10, guidance_scale=1.0)
        assert output.timesteps == time_grid(10, 300, 1.5)[:0:-1].tolist()
        assert output.settings == {
            "strength": 0.3,
            "guidance_scale": 1.0,
            "num_inference_steps": 10,
            "num_inversion_steps": 10,
            "start": "inversion",
            "guidance_mode": "zt",
            "follow_inversion": False,
            "mask": "everywhere",
            "fade_guidance": False,
            "solver_order": 2,
            "eta": 0.0,
            "hold": 0.0,
            "detail": "keep",
        }

    def test_eta_means_first_order(self, pipe):
        output = pipe(random_pil(1), away="Mass", start="noise", eta=0.5, **FAST)
        assert output.settings["solver_order"] == 1 and output.settings["num_inversion_steps"] == 0
        assert output.timesteps == time_grid(3, 200)[:0:-1].tolist()

    def test_defaults_come_from_the_checkpoint(self):
        defaults = {
            "strength": 0.1,
            "guidance_scale": 3.0,
            "num_inference_steps": 2,
            "start": "noise",
            "guidance_mode": "x0_detached",
        }
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline, guidance_defaults=defaults)
        arguments = {"away": "Mass", "output_type": "latent"}
        by_default = pipe(random_pil(1), generator=generators(0)[0], **arguments)
        assert {name: by_default.settings[name] for name in defaults} == defaults
        plain = tiny_pipeline(MediffusionCounterfactualPipeline)
        given = plain(random_pil(1), generator=generators(0)[0], **defaults, **arguments)
        assert torch.equal(by_default.images, given.images)
        over = pipe(random_pil(1), strength=0.2, **arguments)
        assert over.settings["strength"] == 0.2 and over.settings["start"] == "noise"


class TestStrength:
    @pytest.mark.parametrize("strength, first", [(0.3, 300), (0.001, 1), (0.0001, 1), (1.0, 999)])
    @pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
    def test_is_the_share_of_the_schedule(self, pipes, scheduler, strength, first):
        output = pipes[scheduler](
            random_pil(1), away="Mass", strength=strength, num_inference_steps=1, start="noise", guidance_scale=1.0
        )
        assert output.timesteps == [first]

    def test_start_and_first_step_share_their_level(self, pipe):
        """One step from a known noise with a perfect noise prediction gives the image back."""
        latents = pipe.encode_images(random_images(1))
        noise = torch.randn(latents.shape, generator=generators(0)[0])
        noisy = pipe.scheduler.add_noise(latents, noise, torch.tensor([300]))
        scheduler = MultistepDDIMScheduler.from_config(pipe.scheduler.config)
        scheduler.set_grid(1, 300)
        step = scheduler.step(noise, scheduler.timesteps[0], noisy)
        torch.testing.assert_close(step.pred_original_sample, latents, atol=1e-5, rtol=1e-5)


class TestMistakes:
    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"strength": 0.0}, r"`strength` must be a number in \(0, 1\]"),
            ({"strength": -0.1}, r"`strength` must be a number in \(0, 1\]"),
            ({"strength": 1.01}, r"`strength` must be a number in \(0, 1\]"),
            ({"strength": float("nan")}, r"`strength` must be a number in \(0, 1\]"),
            ({"strength": "0.3"}, r"`strength` must be a number in \(0, 1\], but got '0.3'"),
            ({"guidance_scale": -1.0}, "`guidance_scale` must be a number at least 0"),
            ({"guidance_scale": float("inf")}, "`guidance_scale` must be a number at least 0, but got inf"),
            ({"guidance_scale": [1, "2"]}, "`guidance_scale` must be a number at least 0, but got '2'"),
            ({"image": random_pil(2), "guidance_scale": [1, 2, 3]}, "one scale per counterfactual.* but it holds 3"),
            ({"num_inference_steps": 2.5}, "`num_inference_steps` must be a whole number at least 1, but got 2.5"),
            ({"generator": 1}, r"must be a torch.Generator .* but got 1\. For a seed"),
            ({"start": "middle"}, "`start` must be one of"),
            ({"guidance_mode": "xt"}, "`guidance_mode` must be one of"),
            ({"num_inference_steps": 0}, "`num_inference_steps` must be a whole number at least 1, but got 0"),
            ({"num_inference_steps": 301}, r"`num_inference_steps` counts.*\[1, 300\]"),
            ({"strength": 0.005}, r"\[1, 5\] at `strength=0.005`, but got 10"),
            ({"num_inversion_steps": 0}, r"`num_inversion_steps` counts.*\[1, 300\]"),
            ({"eta": 0.5}, "needs deterministic steps"),
            ({"start": "noise", "eta": 1.5}, r"`eta` must be a number in \[0, 1\]"),
            ({"solver_order": 3}, r"`solver_order` must be a whole number in \[1, 2\]"),
            ({"noise": torch.zeros(1, 4, 8, 8)}, r"`noise` is for `start='noise'`"),
            ({"start": "noise", "noise": torch.zeros(1, 4, 8, 9)}, r"latents' shape \(1, 4, 8, 8\)"),
            ({"generator": generators(0, 1)}, "one generator per image, 1, but holds 2"),
            ({"output_type": "jpg"}, "`output_type` must be one of"),
            ({"callback_on_step_end_tensor_inputs": ["noise"]}, "must be among"),
            ({"away": "Hernia"}, "unknown label 'Hernia'.*Known labels: Cardiomegaly"),
            ({"towards": "Mass"}, "'Mass' is named in both"),
            ({"away": None}, "at least one label"),
            ({"image": random_pil(2), "away": [["Mass"]] * 3}, "each of the 2 images"),
            ({"away": [["Mass"]] * 2, "towards": [["Effusion"]] * 3}, "but it holds 2 items"),
            ({"image": []}, "the list is empty"),
            ({"image": np.zeros((4, 4, 2), dtype=np.float32)}, r"1 \(grey\) or 3 \(RGB\) channels"),
            ({"image": np.full((16, 16), np.nan, dtype=np.float32)}, "NaN or infinite"),
            ({"image": "chest.png"}, "but got str"),
        ],
    )
    def test_message(self, pipe, arguments, message):
        with pytest.raises(ValueError, match=message):
            pipe(**{"image": random_pil(1), "away": "Mass", **arguments})

    def test_inversion_with_ddpm(self, pipes):
        with pytest.raises(ValueError, match=r"scheduler is DDPM.*`start='noise'`"):
            pipes["ddpm"](random_pil(1), away="Mass", start="inversion")

    def test_two_classes_for_a_single_label_model(self):
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline, problem_type=SINGLE_LABEL)
        with pytest.raises(ValueError, match="one class per image"):
            pipe(random_pil(1), towards=["Mass", "Effusion"])
