"""To a noise level: by inversion, which keeps an image's identity, or by adding noise (paper Sec. 3.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler

from ...guidance import predict_epsilon
from ...schedulers import MultistepDDIMScheduler
from .settings import CounterfactualSettings, timestep_of


@dataclass(frozen=True)
class Start:
    """Where the way back begins.

    Args:
        latents: one per image, at the noise level.
        strength: the noise level as a share of the schedule.
        timestep: the same as a timestep.
        path_latents: the latents at each grid point, clean ones first; empty without a path. Noised paths have a first
            dimension more, the noises, at all points but the clean one.
        path_epsilons: the noise predicted at each of them but the last; noised paths have none for the clean one.
    """

    latents: torch.Tensor
    strength: float
    timestep: int
    path_latents: tuple[torch.Tensor, ...] = ()
    path_epsilons: tuple[torch.Tensor, ...] = ()


class Inversion:
    """Climb deterministically from clean latents to a noise level, and remember the path.

    Args:
        unet: the joint model.
        scheduler: of the pipeline.
        settings: resolved ones.
        latents: clean, one per image.
    """

    def __init__(self, unet: Any, scheduler: Any, settings: CounterfactualSettings, latents: torch.Tensor):
        self.unet, self.scheduler, self.settings, self.latents = unet, scheduler, settings, latents

    def begin(self, images: torch.Tensor, strength: float, shown: Callable[[Any], Iterable[Any]]) -> Start:
        """Take some of the images there.

        Args:
            images: their indices, on the CPU.
            strength: share of the noise schedule.
            shown: wraps the timesteps into a progress bar.
        """
        latents, timestep = self.latents[images], timestep_of(strength, self.scheduler)
        scheduler = MultistepDDIMScheduler.from_config(self.scheduler.config)
        num_steps, order = self.settings.num_inversion_steps, self.settings.solver_order
        assert num_steps is not None  # resolved
        scheduler.set_grid(num_steps, timestep, inverse=True, solver_order=order)
        path_latents, path_epsilons = [latents], []
        for t in shown(scheduler.timesteps):
            model_output = self.unet(latents, t, return_logits=False).sample
            alpha = scheduler.alphas_cumprod[t]
            path_epsilons.append(predict_epsilon(model_output, latents, alpha, scheduler.config.prediction_type))
            latents = scheduler.step(model_output, t, latents).prev_sample
            path_latents.append(latents)
        if not self.settings.follow_inversion:
            return Start(latents, strength, timestep)
        return Start(latents, strength, timestep, tuple(path_latents), tuple(path_epsilons))


class AddedNoise:
    """Jump to a noise level with random noise, as the paper does.

    Args:
        scheduler: of the pipeline.
        latents: clean, one per image.
        noise: of the same shape.
    """

    def __init__(self, scheduler: Any, latents: torch.Tensor, noise: torch.Tensor):
        self.scheduler, self.latents, self.noise = scheduler, latents, noise.to(latents)

    def begin(self, images: torch.Tensor, strength: float, shown: Callable[[Any], Iterable[Any]]) -> Start:
        """Take some of the images there; as for `Inversion`."""
        timestep = timestep_of(strength, self.scheduler)
        level = torch.full((len(images),), timestep, device=self.latents.device)
        # The forward process is the same for all schedulers; DPM-Solver's own method needs its timesteps to be set.
        scheduler = DDPMScheduler.from_config(self.scheduler.config)
        return Start(scheduler.add_noise(self.latents[images], self.noise[images], level), strength, timestep)


class Way(Protocol):
    """To a noise level: `Inversion`, `AddedNoise` or `NoisedPaths`."""

    def begin(self, images: torch.Tensor, strength: float, shown: Callable[[Any], Iterable[Any]]) -> Start:
        """Take some of the images there; as for `Inversion`."""
