"""DiME (Jeanneret, Simon, Jurie 2022, "Diffusion Models for Counterfactual Explanations").

Written from the paper's description. The classifier, trained on clean images, is asked at an image that an *inner*
reverse diffusion makes out of every noisy step; its gradient is carried over to z_t by dz_0/dz_t = 1/sqrt(abar_t),
since z_t = sqrt(abar_t) z_0 + noise (Eq. 4 of DDPM). So n steps take n(n + 1)/2 denoising evaluations.

What differs: there is no perceptual loss (no feature network of medical images comes with the project), so that
closeness is the paper's L1 term alone; and the steps are respaced to what the evaluations allow (there: 60 of 200).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .problem import PeerSettings, Problem


@dataclass(frozen=True)
class DiMESettings(PeerSettings):
    """Settings of `dime`.

    Args:
        l1_weight: of the distance to the original, at least 0.
    """

    num_inference_steps: int = 10
    l1_weight: float = 0.05


def dime(problem: Problem, settings: DiMESettings) -> torch.Tensor:
    """Change images as DiME does; returns latents."""
    steps = problem.steps(settings)
    z_t = problem.add_noise(problem.latents, steps[0][0])
    z_0 = problem.latents  # the first gradient is taken at the image itself
    for number, (t, next_t) in enumerate(steps):
        # L = lambda_c L_class(x_t) + lambda_1 |x_t - x|_1 at the clean image x_t, here z_0;
        # grad_{z_t} L = grad_{x_t} L / sqrt(abar_t)
        push = settings.guidance_scale * problem.log_prob_grad(z_0)
        pull = settings.l1_weight * (z_0 - problem.latents).sign()
        z_t = problem.step(*problem.predict(z_t, t), t, next_t, (push - pull) / problem.alpha(t).sqrt())
        z_0 = problem.denoise(z_t, steps[number + 1 :])  # the inner diffusion
    return z_t
