"""ACE (Jeanneret, Simon, Jurie 2023, "Adversarial Counterfactual Visual Explanations").

Written from the paper's description, in its two stages:

1. *Pre-explanation*: an adversarial attack on the classifier behind a diffusion filter, `argmin_x' L_class(F_tau(x'))
   + lambda_d |x' - x|_1`, where F_tau noises to tau and denoises in a few steps, with the gradient through all of
   them.
2. *Refinement*: where the pre-explanation hardly differs from the original the original is put back, by RePaint's
   inpainting (its Eq. 8), so that what is left of the edit joins its surroundings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mediffusion_diffusers.guidance import gradient_of

from .problem import PeerSettings, Problem, change_mask


@dataclass(frozen=True)
class ACESettings(PeerSettings):
    """Settings of `ace`.

    Args:
        guidance_scale: step of the attack along the gradient of the log-probability.
        strength: noise level tau of the filter and of the inpainting.
        num_inference_steps: of the inpainting.
        num_filter_steps: denoising steps of the filter.
        num_attack_steps: steps of the attack.
        momentum: of the attack, in [0, 1).
        l1_weight: lambda_d, at least 0.
        threshold: of the mask, as a share of the largest difference.
        dilation: of the mask, in positions on each side.
    """

    strength: float = 0.2
    num_inference_steps: int = 10
    num_filter_steps: int = 3
    num_attack_steps: int = 6
    momentum: float = 0.9
    l1_weight: float = 0.001
    threshold: float = 0.15
    dilation: int = 1


def ace(problem: Problem, settings: ACESettings) -> torch.Tensor:
    """Change images as ACE does; returns latents."""
    explained = pre_explanation(problem, settings)
    mask = change_mask(explained - problem.latents, settings.threshold, settings.dilation)
    steps = problem.steps(settings)
    z_t = problem.blend(mask, problem.add_noise(explained, steps[0][0]), steps[0][0])
    for t, next_t in steps:
        z_t = problem.blend(mask, problem.step(*problem.predict(z_t, t), t, next_t), next_t)
    return z_t


def pre_explanation(problem: Problem, settings: ACESettings) -> torch.Tensor:
    """The first stage: latents after the attack and the filter."""
    attacked, velocity = problem.latents, torch.zeros_like(problem.latents)
    for _ in range(settings.num_attack_steps):
        with torch.enable_grad():
            leaf = attacked.detach().clone().requires_grad_()
            logits = problem.logits(diffusion_filter(problem, settings, leaf))
            gradient = gradient_of(problem.target.log_prob, logits, leaf).to(leaf)
        pull = settings.l1_weight * (attacked - problem.latents).sign()
        velocity = settings.momentum * velocity + gradient - pull
        attacked = attacked + settings.guidance_scale * velocity
    return diffusion_filter(problem, settings, attacked)


def diffusion_filter(problem: Problem, settings: ACESettings, latents: torch.Tensor) -> torch.Tensor:
    """F_tau: noise to tau and denoise in a few steps, which leaves no adversarial noise; differentiable."""
    steps = problem.steps(PeerSettings(0.0, settings.strength, settings.num_filter_steps))
    return problem.denoise(problem.add_noise(latents, steps[0][0]), steps)
