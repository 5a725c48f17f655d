"""The push over a whole step, against the differential equation and against many steps."""

import pytest
import torch
from diffusers import DDPMScheduler
from support.components import MULTI_LABEL, generators, random_pil, tiny_pipeline

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.guidance import (
    GuidanceTarget,
    GuidedPrediction,
    fade,
    guide_model_output,
    predict_epsilon,
)
from mediffusion_diffusers.guidance.fading import fading_factor


STEEP = {"strength": 0.3, "guidance_scale": 3000.0, "output_type": "latent"}


def test_factor_solves_the_differential_equation():
    """`dl/du = K (1 - g)`, by many small steps from several beginnings and for several K at once."""
    start, strength = torch.tensor(
        [(logit, strength) for logit in (-8.0, -2.0, 0.0, 3.0) for strength in (0.01, 1.0, 10.0, 300.0)],
        dtype=torch.double,
    ).T
    logit, total, num_steps = start, 0.0, 20_000
    for _ in range(num_steps):
        push = torch.sigmoid(-logit)
        total = total + push / num_steps
        logit = logit + strength * push / num_steps
    first = torch.sigmoid(-start)
    factor = fading_factor(torch.nn.functional.logsigmoid(start), strength * first**2)
    torch.testing.assert_close(factor, total / first, rtol=2e-2, atol=0)


def test_factor_at_the_ends():
    log_prob = torch.tensor([0.0, -1e-12, -50.0, -1.0, -1.0])
    gain = torch.tensor([0.0, 1e-20, 1.0, 0.0, 1e30])
    factor = fading_factor(log_prob, gain)
    assert factor.isfinite().all() and (factor >= 0).all() and (factor <= 1).all()
    assert factor[0] == 1 and factor[3] == 1  # nothing is pushed
    assert factor[2] == pytest.approx(1, abs=1e-6)  # far from the target the push stays
    assert factor[4] < 1e-6


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_step_goes_where_many_small_ones_go(prediction_type):
    """Where the logit is linear in the latents; -0.2 sqrt(1 - abar) s moves them per unit of the gradient."""
    generator = generators(0)[0]
    sample, unguided, weight = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(3))
    alpha, noise_weight, scale = torch.tensor(0.7), torch.tensor(-0.2), torch.tensor([3.0, 40.0])
    target = GuidanceTarget(torch.tensor([[0.0, -1.0]] * 2), MULTI_LABEL)

    def logits_of(latents):
        return torch.stack([torch.zeros(2), 0.1 * (latents * weight).flatten(1).sum(1) + 2.0], dim=1)

    def gradient_at(latents):
        leaf = latents.clone().requires_grad_()
        return torch.autograd.grad(target.log_prob(logits_of(leaf)).sum(), leaf)[0]

    end, num_steps = sample, 5000
    for _ in range(num_steps):
        shift = guide_model_output(torch.zeros_like(end), gradient_at(end), alpha, scale)
        end = end + noise_weight * shift / num_steps
    guided = guide_model_output(unguided, gradient_at(sample), alpha, scale, prediction_type)
    predicted = GuidedPrediction(guided, logits_of(sample), unguided)
    faded = fade(predicted, sample, target, scale, alpha, noise_weight, prediction_type)
    place = (sample, alpha, prediction_type)
    moved = noise_weight * (predict_epsilon(faded, *place) - predict_epsilon(unguided, *place))
    torch.testing.assert_close(sample + moved, end, atol=2e-3, rtol=0)
    held = noise_weight * (predict_epsilon(guided, *place) - predict_epsilon(unguided, *place))
    assert (sample + held - end).abs().max() > 0.1  # without fading it goes far beyond


def test_a_held_label_is_no_gain():
    """The penalty's push neither counts as a gain of the target, however large it is, nor fades with it."""
    generator = generators(0)[0]
    sample, unguided, own, penalty = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(4))
    penalty = penalty - (penalty * own).sum() / own.square().sum() * own  # it does not move the target
    alpha, step, scale = torch.tensor(0.7), torch.tensor(-0.2), 5.0
    target, logits = GuidanceTarget(torch.tensor([[0.0, -1.0]]), MULTI_LABEL), torch.zeros(1, 2)
    pushed = {part: guide_model_output(unguided, part, alpha, scale) for part in (own, own + 100 * penalty)}
    alone, held = pushed.values()
    faded = fade(GuidedPrediction(alone, logits, unguided), sample, target, scale, alpha, step)
    both = fade(GuidedPrediction(held, logits, unguided, own), sample, target, scale, alpha, step)
    assert (faded - unguided).norm() < 0.9 * (alone - unguided).norm()
    torch.testing.assert_close(both - faded, held - alone, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("follow_inversion", [True, False])
def test_few_steps_come_closer_to_many(follow_inversion):
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline)
    arguments = {**STEEP, "away": "Mass", "follow_inversion": follow_inversion}
    many = pipe(random_pil(2), num_inference_steps=200, **arguments)
    errors = {}
    for fades in (False, True):
        few = pipe(random_pil(2), num_inference_steps=6, fade_guidance=fades, **arguments)
        errors[fades] = float((few.null_difference - many.null_difference).norm() / many.null_difference.norm())
    assert errors[True] < 0.7 * errors[False], errors


def test_null_edit_batches_and_settings():
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline, guidance_defaults={"fade_guidance": True})
    arguments = {**STEEP, "num_inference_steps": 4}
    null = pipe(random_pil(1), away="Mass", **{**arguments, "guidance_scale": 0.0})
    assert torch.equal(null.images, null.null_images) and null.settings["fade_guidance"]
    both = pipe(random_pil(2), away="Mass", **{**arguments, "guidance_scale": [3000.0, 0.0]})
    alone = pipe(random_pil(2)[:1], away="Mass", **arguments)
    torch.testing.assert_close(both.images[:1], alone.images, atol=1e-5, rtol=0)
    torch.testing.assert_close(both.images[1], both.null_images[1], atol=1e-5, rtol=0)


def test_only_where_steps_are_known():
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline, guidance_defaults={"fade_guidance": True})
    noisy = {**STEEP, "num_inference_steps": 3, "start": "noise", "away": "Mass", "generator": generators(0)}
    assert not pipe(random_pil(1), eta=0.5, **noisy).settings["fade_guidance"]
    with pytest.raises(ValueError, match="`fade_guidance` needs a DDIMScheduler and `eta=0`"):
        pipe(random_pil(1), eta=0.5, fade_guidance=True, **noisy)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    assert not pipe(random_pil(1), **noisy).settings["fade_guidance"]
    with pytest.raises(ValueError, match="`fade_guidance` needs a DDIMScheduler"):
        pipe(random_pil(1), fade_guidance=True, **noisy)
