"""The deviation from freshly noised paths, and detail kept while decoding."""

import numpy as np
import pytest
import torch
from support.components import generators, random_images, random_pil, tiny_pipeline
from support.edits import close

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.pipelines.counterfactual import noised_paths
from mediffusion_diffusers.pipelines.counterfactual.noised_paths import Views, agreement_of


PATHS = {"start": "noised_paths", "num_inference_steps": 4, "strength": 0.4, "guidance_scale": 20.0}
LATENT = {**PATHS, "output_type": "latent"}


def with_scheduler(pipe, **config):
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **config)
    own = MediffusionCounterfactualPipeline(pipe.vae, pipe.unet, scheduler)
    own.set_progress_bar_config(disable=True)
    return own


class TestNoGuidance:
    @pytest.mark.parametrize(
        "prediction_type, dtype",
        [("epsilon", torch.float32), ("v_prediction", torch.float16), ("sample", torch.bfloat16)],
    )
    def test_is_the_image_bit_for_bit(self, prediction_type, dtype):
        pipe = with_scheduler(
            tiny_pipeline(MediffusionCounterfactualPipeline, vae="kl"), prediction_type=prediction_type
        )
        pipe.to(dtype)
        output = pipe(random_pil(2), away="Mass", **{**PATHS, "guidance_scale": [0.0, 20.0]}, output_type="pt")
        assert torch.equal(output.null_images, output.originals)
        assert torch.equal(output.images[0], output.originals[0]) and not output.difference[0].any()
        assert not torch.equal(output.images[1], output.originals[1])
        assert torch.equal(output.probabilities_null, output.probabilities_before)

    def test_as_8_bits(self, pipe):
        output = pipe(random_pil(2), away="Mass", **{**PATHS, "guidance_scale": 0.0})
        for picture, image in zip(output.images, random_pil(2), strict=True):
            assert np.array_equal(np.asarray(picture), np.asarray(image))


class TestNoises:
    def test_one_after_another_is_all_at_once(self, pipe, monkeypatch):
        arguments = {"away": [["Mass"], ["Effusion"]], "num_noises": 5, **LATENT}
        at_once = pipe(random_pil(1), **arguments)
        monkeypatch.setattr(noised_paths, "_MAX_POSITIONS", 2 * 2 * 64)  # two noises of two rows
        one_by_one = pipe(random_pil(1), **arguments)
        close(one_by_one.images, at_once.images)
        np.testing.assert_allclose(one_by_one.agreement, at_once.agreement, atol=1e-4)

    def test_same_seed_same_picture_on_any_number_of_threads(self, pipe):
        arguments = {"away": "Mass", "num_noises": 2, **LATENT, "num_inference_steps": 2}
        first = pipe(random_pil(1), generator=generators(3), **arguments)
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1 if num_threads > 1 else 4)
        try:
            again = pipe(random_pil(1), generator=generators(3), **arguments)
        finally:
            torch.set_num_threads(num_threads)
        close(again.images, first.images)
        other = pipe(random_pil(1), generator=generators(4), **arguments)
        assert (other.images - first.images).abs().max() > 1e-3

    def test_without_a_generator_the_noise_is_always_the_same(self, pipe):
        state = torch.get_rng_state()
        batch, alone = (pipe(images, away="Mass", **LATENT) for images in (random_pil(2), random_pil(2)[1:]))
        close(alone.images[0], batch.images[1])
        assert torch.equal(torch.get_rng_state(), state)

    def test_the_default_dtype_of_the_process_chooses_no_noise(self, pipe):
        arguments = {"away": "Mass", **PATHS, "num_inference_steps": 2, "output_type": "pt"}
        expected = pipe(random_pil(1), **arguments)
        torch.set_default_dtype(torch.float64)
        try:
            output = pipe(random_pil(1), **arguments)
        finally:
            torch.set_default_dtype(torch.float32)
        close(output.images, expected.images)
        close(output.random_noise_images, expected.random_noise_images)

    def test_agreement(self, pipe):
        output = pipe(random_pil(2), away="Mass", num_noises=4, **LATENT)
        assert output.agreement.shape == (2, 1, 8, 8)
        assert output.agreement.min() >= 0 and output.agreement.max() <= 1
        same = torch.randn(1, 2, 4, 8, 8).expand(3, -1, -1, -1, -1)
        close(agreement_of(same), torch.ones(2, 1, 8, 8))
        close(agreement_of(torch.cat([same, -same])), torch.zeros(2, 1, 8, 8))
        assert not agreement_of(0 * same).any()
        assert pipe(random_pil(1), away="Mass", output_type="latent").agreement is None


class TestEvaluations:
    def test_targets_and_trials_share_the_unguided_half(self, pipe):
        arguments = {"num_noises": 2, "controls": False, **LATENT}
        one = pipe(random_pil(1), away="Mass", **arguments)
        assert one.unet_evaluations == 2 * 4 + 2 * 3
        three = pipe(random_pil(1), away=[["Mass"], ["Effusion"], ["Cardiomegaly"]], **arguments)
        assert three.unet_evaluations == 2 * 4 + 2 * 3 / 3
        sweep = pipe(random_pil(1), away="Mass", target_probability=1e-6, max_guidance_scale=40.0, **arguments)
        num_trials = 2  # 20 and 40; without guidance nothing is evaluated
        assert not sweep.reached.any() and sweep.unet_evaluations == 2 * 4 * num_trials + 2 * 3
        found = pipe(random_pil(1), away="Mass", **{**arguments, "mask": "auto"})  # a region costs two of the encoder
        assert found.unet_evaluations == one.unet_evaluations + 2

    @pytest.mark.parametrize("quality, num_evaluations", [("fast", 24), ("best", 78)])
    def test_quality_takes_what_its_help_says(self, pipe, quality, num_evaluations):
        output = pipe(random_pil(1), away="Mass", quality=quality, guidance_scale=5.0, controls=False)
        assert output.unet_evaluations == num_evaluations
        assert output.settings["start"] == "noised_paths" and output.settings["mask"] == "auto"


class TestQuality:
    def resolve(self, checkpoint=None, **call):
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline, guidance_defaults=checkpoint)
        return pipe.resolve_settings(**call)

    def test_what_is_named_comes_first(self):
        settings = self.resolve(quality="fast", num_noises=3)
        assert (settings.num_noises, settings.num_inference_steps, settings.strength) == (3, 6, 0.5)
        assert (settings.eta, settings.solver_order) == (1.0, 1)

    def test_a_call_comes_before_the_checkpoint(self):
        checkpoint = {"quality": "best", "strength": 0.4, "mask": "everywhere", "guidance_scale": 7.0}
        settings = self.resolve(checkpoint)
        assert (settings.num_noises, settings.num_inference_steps, settings.strength) == (4, 10, 0.4)
        settings = self.resolve(checkpoint, quality="fast")
        assert (settings.num_noises, settings.num_inference_steps) == (2, 6)
        assert (settings.strength, settings.mask, settings.guidance_scale) == (0.4, "everywhere", 7.0)

    def test_another_start_does_without(self):
        settings = self.resolve({"quality": "best", "num_noises": 8}, start="inversion")
        assert settings.quality is settings.num_noises is settings.views is None and settings.eta == 0

    def test_a_scale_of_another_start(self, caplog):
        stored = {"guidance_scale": 100.0, "mask": "everywhere", "strength": 0.2}
        self.resolve(stored, quality="best", guidance_scale=10.0)
        self.resolve({**stored, "quality": "best"}, quality="fast")
        assert not caplog.text
        settings = self.resolve(stored, quality="best")
        assert (settings.strength, settings.mask) == (0.5, "auto")
        assert "100.0, was chosen for `start='inversion'`" in caplog.text
        for other, call in ((stored, {"start": "noised_paths"}), ({**stored, "quality": "best"}, {"start": "noise"})):
            caplog.clear()
            self.resolve(other, **call)
            assert "give a `guidance_scale`" in caplog.text

    @pytest.mark.parametrize(
        "wrong, message",
        [
            ({"quality": "best", "start": "noise"}, "`quality` needs `start='noised_paths'`"),
            ({"start": "noised_paths", "num_noises": 10**9}, r"`num_noises` must be a whole number in \[1, 1000\]"),
            ({"num_noises": 2}, "`num_noises` needs `start='noised_paths'`"),
            ({"views": "shifts"}, "`views` needs `start='noised_paths'`"),
            ({"start": "noised_paths", "fade_guidance": True}, "`fade_guidance` needs"),
            ({"start": "noised_paths", "follow_inversion": True}, "`follow_inversion` needs `start='inversion'`"),
            ({"quality": "better"}, "`quality` must be one of 'fast', 'best', but got 'better'"),
        ],
    )
    def test_mistakes(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            self.resolve(**wrong)


@pytest.mark.parametrize("kind", ["shifts", "shifts_and_flips", "none"])
def test_views_are_put_back_bit_for_bit(kind):
    latents, views = torch.randn(8, 2, 4, 6, 5), Views(kind)
    for step in range(3):
        shown = views.show(latents, step)
        assert torch.equal(views.put_back(shown, step), latents)
        assert torch.equal(views.show(latents[3:5], step, 3), shown[3:5])
        num_views = len(
            {tuple(each[0, 0].flatten().tolist()) for each in views.show(latents[:1].expand(8, -1, -1, -1, -1), step)}
        )
        assert num_views == (1 if kind == "none" else 4)


class TestDetail:
    @pytest.mark.parametrize("start", ["inversion", "noise", "noised_paths"])
    def test_is_kept(self, start):
        """x + D(z') - D(z_null); decoded, the same latents give D(z')."""
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline, vae="kl")
        arguments = {**PATHS, "start": start, "away": "Mass", "generator": generators(0, 1)}
        kept, decoded, latents = (
            pipe(random_images(2), **{**arguments, "generator": generators(0, 1)}, detail=detail, output_type=kind)
            for detail, kind in (("keep", "pt"), ("decoded", "pt"), ("keep", "latent"))
        )
        with torch.no_grad():
            edited, null = (pipe.decode_latents(part) / 2 for part in (latents.images, latents.null_images))
        close(decoded.images, edited + 0.5)
        close(decoded.null_images, null + 0.5)
        close(kept.images, (kept.originals + edited - null).clamp(0, 1))
        assert torch.equal(kept.null_images, kept.originals) and torch.equal(kept.difference, kept.null_difference)
        # Probabilities and controls are those of the pictures that the user gets.
        for output in (kept, decoded):
            logits = pipe.classify_latents(pipe.encode_images(output.images))
            close(output.probabilities_after, pipe.logits_to_probabilities(logits).detach())
            l1 = (output.plain_gradient_images - output.originals).abs().mean((1, 2, 3))
            close(l1, (output.images - output.originals).abs().mean((1, 2, 3)))

    def test_outside_a_given_mask_is_the_image(self):
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline, vae="kl")
        boxes = [{"x": 0.0, "y": 0.0, "width": 0.5, "height": 0.5}]
        output = pipe(random_images(1), away="Mass", mask=boxes, **PATHS, output_type="pt")
        change = output.difference[0, 0]
        assert change[:8, :8].any() and not change[8:].any() and not change[:, 8:].any()

    def test_a_search_judges_what_the_user_sees(self):
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline, vae="kl")
        arguments = {**PATHS, "away": "Mass", "output_type": "pt", "controls": False}
        far = pipe(random_images(2), **{**arguments, "guidance_scale": 60.0})
        goal = min(float(far.probabilities_after[:, 2].max()) + 1e-4, 0.49)
        found = pipe(random_images(2), **arguments, target_probability=goal, max_guidance_scale=120.0)
        assert found.reached.tolist() == (found.probabilities_after[:, 2] <= goal).tolist()
        again = pipe(random_images(2), **{**arguments, "guidance_scale": found.guidance_scales.tolist()})
        close(again.images, found.images)


def test_a_removal_and_an_addition_at_once(pipe):
    arguments = {**LATENT, "guidance_mode": "x0_detached", "guidance_scale": 50.0}
    output = pipe(random_images(2), towards="Mass", away="Effusion", **arguments)
    null, after = (
        p[:, 2].log() + (1 - p[:, 1]).log() for p in (output.probabilities_null, output.probabilities_after)
    )
    assert (after > null + 0.01).all()


def test_labels_are_held_where_a_v_model_has_them(pipe):
    """The reference is the model's own at the path, whatever it predicts: at first its prediction, later its noise."""
    own = with_scheduler(pipe, prediction_type="v_prediction")
    arguments = {"away": "Mass", "guidance_mode": "x0_detached", "guidance_scale": 5.0, "hold": 0.5}
    gaps = []
    for num_steps in (5, 40):
        settings = {**arguments, "strength": 0.2, "num_inference_steps": num_steps, "output_type": "latent"}
        followed, sampled = (own(random_pil(1), follow_inversion=follow, **settings) for follow in (True, False))
        wanted = sampled.images - sampled.null_images
        gaps.append(float((followed.images - followed.null_images - wanted).norm() / wanted.norm()))
    assert gaps[1] < 0.5 * gaps[0] and gaps[1] < 0.05
