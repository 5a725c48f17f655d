"""Several counterfactuals of an image, the inversion's path, held labels, outside classifiers, controls."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler
from support.components import (
    MULTI_LABEL,
    PROBLEM_TYPES,
    SINGLE_LABEL,
    generators,
    random_images,
    random_pil,
    tiny_pipeline,
)
from support.edits import FAST, close
from transformers import ResNetConfig, ResNetForImageClassification

from mediffusion_diffusers import MediffusionCounterfactualPipeline, MultistepDDIMScheduler
from mediffusion_diffusers.guidance import OWN_GUIDANCE_MODES, ExternalClassifier


class TestSeveralPerImage:
    def test_targets_share_an_image(self, pipe, arguments):
        image, labels = random_pil(1), ["Mass", "Effusion", "Cardiomegaly"]
        together = pipe(image, away=[[label] for label in labels], generator=generators(5), **arguments)
        assert len(together.images) == len(together.originals) == len(together.probabilities_before) == 3
        for row, label in enumerate(labels):
            alone = pipe(image, away=label, generator=generators(5), **arguments)
            for name in ("images", "null_images", "probabilities_after", "probabilities_null", "difference"):
                close(together[name][row], alone[name][0])

    def test_as_many_for_every_image(self, pipe, arguments):
        labels = [["Mass"], ["Effusion"]]
        together = pipe(random_pil(2), away=labels * 2, generator=generators(0, 1), **arguments)
        for index, image in enumerate(random_pil(2)):
            alone = pipe(image, away=labels, generator=generators(index), **arguments)
            close(together.images[2 * index : 2 * index + 2], alone.images)

    def test_sweep_of_scales(self, pipe, arguments):
        scales = [0.0, 10.0, 100.0]
        sweep = pipe(random_pil(1), towards="Mass", generator=generators(5), **{**arguments, "guidance_scale": scales})
        assert sweep.guidance_scales.tolist() == scales
        close(sweep.images[0], sweep.null_images[0])
        for row, scale in enumerate(scales):
            one = pipe(
                random_pil(1), towards="Mass", generator=generators(5), **{**arguments, "guidance_scale": scale}
            )
            close(sweep.images[row], one.images[0])
        log_prob = sweep.probabilities_after[:, 2]
        assert log_prob[0] < log_prob[1] < log_prob[2]

    def test_shares_the_inversion(self, pipe):
        calls = []
        handle = pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
        try:
            arguments = {**FAST, "follow_inversion": True}
            pipe(random_pil(1), away=[["Mass"], ["Effusion"], ["Cardiomegaly"]], controls=False, **arguments)
        finally:
            handle.remove()
        assert calls[:8] == [1] * 4 + [3] * 4  # up once for all, down together; the null edit costs nothing


class TestIdentities:
    @pytest.mark.parametrize("solver_order", [1, 2])
    def test_null_edit_composes_inversion_and_sampling(self, pipe, solver_order):
        latents = pipe.encode_images(random_images(2))
        for inverse in (True, False):
            scheduler = MultistepDDIMScheduler.from_config(pipe.scheduler.config)
            scheduler.set_grid(4, 200, inverse, solver_order)
            with torch.no_grad():
                for t in scheduler.timesteps:
                    model_output = pipe.unet(latents, t, return_logits=False).sample
                    latents = scheduler.step(model_output, t, latents).prev_sample
        output = pipe(random_images(2), away="Mass", solver_order=solver_order, **FAST)
        assert torch.equal(output.null_images, latents)
        assert not torch.equal(output.images, latents)


class TestFollowInversion:
    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
    def test_null_edit_is_the_encoded_image(self, pipe, prediction_type):
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=prediction_type)
        own = MediffusionCounterfactualPipeline(pipe.vae, pipe.unet, scheduler)
        own.set_progress_bar_config(disable=True)
        output = own(random_pil(2), away="Mass", **FAST, follow_inversion=True)
        assert torch.equal(output.null_images, output.originals)
        still = own(random_pil(2), away="Mass", **{**FAST, "guidance_scale": 0.0}, follow_inversion=True)
        assert torch.equal(still.images, still.originals)

    @pytest.mark.parametrize("mode", OWN_GUIDANCE_MODES)
    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
    def test_agrees_with_sampling_anew_as_steps_grow(self, pipe, prediction_type, mode):
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=prediction_type)
        own = MediffusionCounterfactualPipeline(pipe.vae, pipe.unet, scheduler)
        own.set_progress_bar_config(disable=True)
        gaps = []
        for num_steps in (5, 40):
            arguments = {**FAST, "num_inference_steps": num_steps, "guidance_mode": mode, "guidance_scale": 10.0}
            followed, sampled = (
                own(random_pil(2), away="Mass", follow_inversion=follow, **arguments) for follow in (True, False)
            )
            gap = (followed.images - followed.null_images) - (sampled.images - sampled.null_images)
            gaps.append(float(gap.norm() / (sampled.images - sampled.null_images).norm()))
        assert gaps[1] < 0.5 * gaps[0] and gaps[1] < 0.05

    def test_a_callback_can_change_the_latents(self, pipe):
        def callback(pipe, step, timestep, kwargs):
            return {"latents": kwargs["latents"] + 1.0} if step == 3 else kwargs

        arguments = {**FAST, "follow_inversion": True}
        plain = pipe(random_pil(1), away="Mass", **arguments)
        changed = pipe(random_pil(1), away="Mass", callback_on_step_end=callback, **arguments)
        close(changed.images, plain.images + 1.0)

    def test_says_what_it_needs(self, pipe):
        for wrong, message in (
            ({"start": "noise"}, "needs `start='inversion'`"),
            ({"num_inversion_steps": 7}, "needs `num_inversion_steps` equal to"),
        ):
            with pytest.raises(ValueError, match=message):
                pipe(random_pil(1), away="Mass", follow_inversion=True, **{**FAST, **wrong})

    def test_default_of_a_checkpoint_gives_way(self):
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline, guidance_defaults={"follow_inversion": True})
        assert pipe(random_pil(1), away="Mass", **FAST).settings["follow_inversion"]
        assert not pipe(random_pil(1), away="Mass", start="noise", **FAST).settings["follow_inversion"]


class TestHold:
    @pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
    @pytest.mark.parametrize("mode", OWN_GUIDANCE_MODES)
    def test_the_other_logits_stay_closer(self, arguments, problem_type, mode):
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline, problem_type=problem_type)
        moved = []
        for hold in (0.0, 10.0 if problem_type == MULTI_LABEL else 40.0):
            output = pipe(
                random_pil(2),
                away="Mass",
                hold=hold,
                generator=generators(0, 1),
                **{**arguments, "guidance_mode": mode, "guidance_scale": 15.0},
            )
            logits = [torch.special.logit(p.double()) for p in (output.probabilities_null, output.probabilities_after)]
            if problem_type == SINGLE_LABEL:
                logits = [p.double().log() for p in (output.probabilities_null, output.probabilities_after)]
                logits = [value[:, :2] - value[:, :2].mean(1, keepdim=True) for value in logits]
            moved.append((logits[1] - logits[0])[:, :2].abs().mean())
        # Noised paths hold the logits of noise drawn anew at each step: the image's own follow more loosely.
        is_noised = arguments.get("start") == "noised_paths"
        assert moved[1] < (0.95 if is_noised else 0.9) * moved[0]

    def test_zero_is_the_plain_edit(self, pipe, arguments):
        plain, zero = (
            pipe(random_pil(1), away="Mass", generator=generators(0), **arguments, **extra)
            for extra in ({}, {"hold": 0.0})
        )
        assert torch.equal(plain.images, zero.images)


class TestNoiseLevel:
    def test_snr_means_the_same_as_its_strength(self, pipe):
        alpha = pipe.scheduler.alphas_cumprod[250]
        by_snr = pipe(random_pil(1), away="Mass", start_snr=float(alpha / (1 - alpha)), **{**FAST, "strength": None})
        assert by_snr.settings["strength"] == 0.25
        assert torch.equal(by_snr.images, pipe(random_pil(1), away="Mass", **{**FAST, "strength": 0.25}).images)

    def test_snr_moves_with_the_schedule(self, pipe):
        other = type(pipe.scheduler).from_config({**pipe.scheduler.config, "beta_end": 0.04})
        own = MediffusionCounterfactualPipeline(pipe.vae, pipe.unet, other)
        assert own.strength_of_snr(1.0) < pipe.strength_of_snr(1.0)

    @pytest.mark.parametrize(
        "wrong, message",
        [
            ({"start_snr": 0.0}, "`start_snr` must be a number above 0"),
            ({"start_snr": 1e9}, "must lie in"),
            ({"start_snr": 1.0, "strength": 0.2}, "give one of them"),
        ],
    )
    def test_mistakes(self, pipe, wrong, message):
        with pytest.raises(ValueError, match=message):
            pipe(random_pil(1), away="Mass", **{**FAST, "strength": None, **wrong})


class TestSchedulers:
    @pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler])
    def test_unguided_is_the_schedulers_own_loop(self, pipe, kind):
        own = MediffusionCounterfactualPipeline(pipe.vae, pipe.unet, kind.from_config(pipe.scheduler.config))
        own.set_progress_bar_config(disable=True)
        images = random_images(2)
        latents = own.encode_images(images)
        noise = torch.randn(latents.shape, generator=generators(0)[0])
        latents = DDPMScheduler.from_config(pipe.scheduler.config).add_noise(latents, noise, torch.tensor([200, 200]))
        scheduler = kind.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(timesteps=[200, 150, 100, 50])
        with torch.no_grad():
            for t in scheduler.timesteps:
                model_output = own.unet(latents, t, return_logits=False).sample
                latents = scheduler.step(model_output, t, latents).prev_sample
        arguments = {**FAST, "start": "noise", "noise": noise}
        output = own(images, away="Mass", **{**arguments, "guidance_scale": 0.0})
        assert output.timesteps == [200, 150, 100, 50]
        assert torch.equal(output.images, latents)
        for start in ("noise", "inversion"):
            arguments = {**FAST, "start": start, "noise": noise if start == "noise" else None}
            guided = own(images, away="Mass", **arguments)
            assert (guided.probabilities_after[:, 2] < guided.probabilities_null[:, 2]).all()


def outside_classifier(seed=0, problem_type=SINGLE_LABEL):
    """A small ResNet of transformers with labels of its own."""
    torch.manual_seed(seed)
    config = ResNetConfig(
        num_channels=3,
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        id2label={0: "sick", 1: "healthy"},
        label2id={"sick": 0, "healthy": 1},
        problem_type=problem_type,
    )
    return ResNetForImageClassification(config).eval()


class TestExternal:
    @pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
    @pytest.mark.parametrize("direction", ["towards", "away"])
    def test_moves_the_outside_classifier(self, pipe, arguments, problem_type, direction):
        output = pipe(
            random_pil(2),
            **{direction: "sick"},
            guidance_mode="external",
            classifier=outside_classifier(problem_type=problem_type),
            generator=generators(0, 1),
            **{**arguments, "guidance_scale": 100.0, "output_type": "pt"},
        )
        assert output.external_label_names == ["sick", "healthy"] and output.label_names[0] == "Cardiomegaly"
        gain = output.external_probabilities_after[:, 0] - output.external_probabilities_null[:, 0]
        assert (gain > 0).all() if direction == "towards" else (gain < 0).all()
        assert output.probabilities_after.shape == (2, 3)

    def test_reports_without_guiding(self, pipe, arguments):
        model, options = outside_classifier(), {**arguments, "output_type": "pt"}
        alone, reported = (
            pipe(random_pil(2), away="Mass", classifier=classifier, generator=generators(0, 1), **options)
            for classifier in (None, model)
        )
        assert torch.equal(alone.images, reported.images) and alone.external_label_names is None
        with torch.no_grad():
            expected = ExternalClassifier(model)(reported.images * 2 - 1).softmax(-1)
        close(reported.external_probabilities_after, expected)

    def test_reads_images_as_its_processor_does(self):
        model = outside_classifier()
        pixels = torch.rand(2, 1, 16, 16) * 2 - 1
        wrapped = ExternalClassifier(model, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        grey = ((pixels + 1) / 2).repeat(1, 3, 1, 1)
        expected = (grey - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
        close(wrapped(pixels), model(expected).logits)

    def test_from_pretrained(self, tmp_path):
        from transformers import ConvNextImageProcessor

        model = outside_classifier()
        model.save_pretrained(tmp_path)
        processor = ConvNextImageProcessor(size={"shortest_edge": 24}, image_mean=[0.1] * 3, image_std=[0.2] * 3)
        processor.save_pretrained(tmp_path)
        loaded = ExternalClassifier.from_pretrained(tmp_path)
        assert loaded.image_size == 24 and loaded.mean.flatten().tolist() == pytest.approx([0.1] * 3)
        assert loaded.label_names == ["sick", "healthy"]
        pixels = torch.rand(1, 1, 24, 24) * 2 - 1
        close(loaded(pixels), ExternalClassifier(model, (0.1,) * 3, (0.2,) * 3, 24)(pixels))

    def test_parameters_get_no_gradient(self, pipe):
        model = outside_classifier()
        pipe(random_pil(1), away="sick", guidance_mode="external", classifier=model, **FAST)
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())

    def test_search_judges_by_the_outside_classifier(self, pipe):
        arguments = {"guidance_mode": "external", "classifier": outside_classifier(), **FAST, "output_type": "pt"}
        far = pipe(random_pil(2), away="sick", **{**arguments, "guidance_scale": 500.0})
        goal = float(far.external_probabilities_after[:, 0].max()) + 1e-4
        if goal >= 0.5:
            pytest.skip("the random classifier is too sure")
        found = pipe(random_pil(2), away="sick", target_probability=goal, max_guidance_scale=2000.0, **arguments)
        assert found.reached.all() and (found.external_probabilities_after[:, 0] <= goal).all()

    @pytest.mark.parametrize(
        "wrong, message",
        [
            ({"guidance_mode": "external"}, "needs a `classifier`"),
            ({"classifier": "resnet", "guidance_mode": "external"}, "must be an image classifier of transformers"),
            ({"classifier": outside_classifier(), "away": "sick"}, "unknown label 'sick'"),
            ({"classifier": outside_classifier(), "guidance_mode": "external"}, "unknown label 'Mass'"),
        ],
    )
    def test_mistakes(self, pipe, wrong, message):
        with pytest.raises(ValueError, match=message):
            pipe(random_pil(1), **{"away": "Mass", **FAST, **wrong})


class TestControls:
    @pytest.fixture(scope="class", params=["space_to_depth", "kl"])
    def output(self, request):
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline, vae=request.param)
        arguments = {**FAST, "output_type": "pt", "guidance_scale": 60.0}
        return pipe(0.25 + random_images(3) / 2, away="Mass", follow_inversion=True, **arguments)

    def test_all_changes_have_one_size(self, output):
        for control in output.controls.values():
            l1 = (control.images - output.originals).abs().flatten(1).mean(1)
            torch.testing.assert_close(l1, output.l1, atol=1e-4, rtol=1e-2)

    def test_plain_gradient_moves_the_probability_and_noise_hardly(self):
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline)  # a random KL decoder inverts nothing
        output = pipe(0.25 + random_images(3) / 2, away="Mass", **{**FAST, "output_type": "pt"})
        moved = {
            name: (control.probabilities - output.probabilities_before)[:, 2]
            for name, control in output.controls.items()
        }
        assert (moved["plain_gradient"] < 0).all()
        assert moved["random_noise"].abs().mean() < moved["plain_gradient"].abs().mean()

    def test_noise_is_of_high_frequency(self, output):
        share = output.controls["random_noise"].high_frequency_share
        assert share.mean() == pytest.approx(0.8, abs=0.05)
        assert ((output.high_frequency_shares >= 0) & (output.high_frequency_shares <= 1)).all()

    def test_batch_is_single(self, output):
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline)
        images = 0.25 + random_images(3) / 2
        arguments = {**FAST, "output_type": "pt"}
        batch = pipe(images, away="Mass", **arguments)
        for index in range(3):
            single = pipe(images[index], away="Mass", **arguments)
            close(single.plain_gradient_images[0], batch.plain_gradient_images[index])
            close(single.random_noise_images[0], batch.random_noise_images[index])

    def test_can_be_left_out(self, pipe):
        output = pipe(random_pil(1), away="Mass", controls=False, **{**FAST, "output_type": "np"})
        assert output.controls is None and output.plain_gradient_images is None
        full = pipe(random_pil(1), away="Mass", **{**FAST, "output_type": "np"})
        np.testing.assert_array_equal(full.images, output.images)
        assert isinstance(full.plain_gradient_images, np.ndarray)
        assert isinstance(pipe(random_pil(1), away="Mass", **{**FAST, "output_type": "pil"}).random_noise_images, list)


def test_without_guidance_only_the_null_edit_is_evaluated(pipe):
    calls = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    try:
        pipe(random_pil(1), away="Mass", start="noise", **{**FAST, "guidance_scale": 0.0})
    finally:
        handle.remove()
    assert sum(kwargs.get("return_logits") is False for kwargs in calls) == FAST["num_inference_steps"]
