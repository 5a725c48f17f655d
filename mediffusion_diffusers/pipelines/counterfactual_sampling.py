"""To a noise level and back: there by inversion or noise, back with and without guidance (paper Sec. 3.5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler

from ..guidance import GuidanceTarget, LatentClassifier, fade, hold_at, predict_epsilon, predict_guided
from ..schedulers import MultistepDDIMScheduler, time_grid
from .base import Generators, MediffusionPipelineMixin, clone_generator, scheduler_step_kwargs


# Called after each step with its number, its timestep, the edited and the null latents; returns both.
OnStep = Callable[[int, int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Route:
    """How far into the noise, and how back: the resolved arguments of a call.

    Args:
        max_timestep: the noise level.
        num_inference_steps: steps down.
        num_inversion_steps: steps up.
        follow_inversion: whether the way back keeps to the inversion's own path.
        solver_order: 1 or 2, see [`MultistepDDIMScheduler`].
        eta: share of fresh noise.
        guidance_mode: where the classifier is asked.
        classifier: of clean latents, for the mode `"external"`.
        fade_guidance: whether the push fades within a step.
    """

    max_timestep: int
    num_inference_steps: int
    num_inversion_steps: int
    follow_inversion: bool
    solver_order: int
    eta: float
    guidance_mode: str
    classifier: LatentClassifier | None = None
    fade_guidance: bool = False


@dataclass(frozen=True)
class Start:
    """Where the way back begins.

    Args:
        latents: one per image, at the noise level.
        path_latents: the inversion's latents at each grid point, clean ones first; empty without an inversion.
        path_epsilons: the noise predicted at each of them but the last.
    """

    latents: torch.Tensor
    path_latents: tuple[torch.Tensor, ...] = ()
    path_epsilons: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True)
class EditRows:
    """The counterfactuals to make; several of them may belong to one image.

    Args:
        image_index: image of each row, shape `(rows,)`.
        target: what is wanted of each row.
        mask: where rows may change, shape `(rows or 1, 1, *latent_size)` in [0, 1]; None for everywhere.
    """

    image_index: torch.Tensor
    target: GuidanceTarget
    mask: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.image_index)

    def select(self, rows: torch.Tensor) -> EditRows:
        """Some of the rows."""
        mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[rows]
        return EditRows(self.image_index[rows], self.target.select(rows), mask)


class CounterfactualSamplingMixin(MediffusionPipelineMixin):
    """The denoising loops of [`MediffusionCounterfactualPipeline`]."""

    _is_quiet: bool = False  # a search shows one bar for itself

    def _timestep_of(self, strength: float) -> int:
        """The noise level of a strength, as a timestep."""
        num_train_timesteps = self.scheduler.config.num_train_timesteps
        return min(max(round(strength * num_train_timesteps), 1), num_train_timesteps - 1)

    def _invert(self: Any, latents: torch.Tensor, route: Route) -> Start:
        """Climb deterministically from clean latents to the noise level, and remember the path."""
        scheduler = MultistepDDIMScheduler.from_config(self.scheduler.config)
        scheduler.set_grid(route.num_inversion_steps, route.max_timestep, True, route.solver_order)
        path_latents, path_epsilons = [latents], []
        for t in self._steps(scheduler.timesteps):
            model_output = self._predict(latents, t)
            alpha = scheduler.alphas_cumprod[t].to(latents.device)
            path_epsilons.append(predict_epsilon(model_output, latents, alpha, scheduler.config.prediction_type))
            latents = scheduler.step(model_output, t, latents).prev_sample
            path_latents.append(latents)
        if not route.follow_inversion:
            return Start(latents)
        return Start(latents, tuple(path_latents), tuple(path_epsilons))

    def _add_noise(self: Any, latents: torch.Tensor, noise: torch.Tensor, route: Route) -> Start:
        """Jump to the noise level with random noise, as the paper does."""
        level = torch.full((len(latents),), route.max_timestep, device=latents.device)
        # The forward process is the same for all schedulers; DPM-Solver's own method needs its timesteps to be set.
        scheduler = DDPMScheduler.from_config(self.scheduler.config)
        return Start(scheduler.add_noise(latents, noise.to(latents), level))

    def _edit(
        self: Any, start: Start, rows: EditRows, route: Route, generator: Generators, on_step: OnStep | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Denoise under guidance, and the null edit from the same start without.

        Returns:
            Clean latents of the rows, and of the null edit of each image.
        """
        if start.path_latents:
            return self._follow_path(start, rows, route, on_step)
        return self._sample(start, rows, route, generator, on_step)

    def _follow_path(
        self: Any, start: Start, rows: EditRows, route: Route, on_step: OnStep | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Integrate only the deviation d = z - z* from the inversion's path z*.

        DDIM's step is linear in (z, eps), so that d takes the same step with `eps'(z* + d) - eps(z*)`. The path needs
        no evaluation but those of the inversion, and whatever the inversion loses it does not lose twice: without
        guidance d stays 0, and the null edit is the encoded image itself.
        """
        index = rows.image_index
        config = {**self.scheduler.config, "prediction_type": "epsilon"}
        scheduler = MultistepDDIMScheduler.from_config(config)
        scheduler.set_grid(route.num_inference_steps, route.max_timestep, solver_order=route.solver_order)
        self._num_timesteps = route.num_inference_steps
        prediction_type = self.scheduler.config.prediction_type
        deviation = torch.zeros_like(start.latents[index])
        is_on_path = True
        for step, t in enumerate(self._steps(scheduler.timesteps)):
            if self.interrupt:
                continue
            place = route.num_inference_steps - step
            on_path = start.path_latents[place][index]
            is_on_path = is_on_path and self._is_unguided()
            if is_on_path:
                change = torch.zeros_like(deviation)
            else:
                latents = on_path + deviation
                alpha = scheduler.alphas_cumprod[t]
                epsilon = start.path_epsilons[place][index] if step else None
                guided, unguided = self._predict_edited(latents, t, rows, route, on_path, epsilon, scheduler)
                change = predict_epsilon(guided, latents, alpha, prediction_type)
                if epsilon is None:  # the top of the path, where z = z*
                    epsilon = predict_epsilon(unguided, latents, alpha, prediction_type)
                change = change - epsilon
            deviation = scheduler.step(change, t, deviation).prev_sample
            if rows.mask is not None:
                deviation = deviation * rows.mask
            if on_step is not None:
                null_latents = start.path_latents[place - 1]
                latents = null_latents[index] + deviation
                changed, _ = on_step(step, int(t), latents, null_latents)
                if changed is not latents:
                    deviation, is_on_path = changed - null_latents[index], False
        null_latents = start.path_latents[0]
        return null_latents[index] + deviation, null_latents

    def _sample(
        self: Any, start: Start, rows: EditRows, route: Route, generator: Generators, on_step: OnStep | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Denoise the edited rows and the null edits, each by the scheduler's own steps."""
        index = rows.image_index
        null_latents, latents = start.latents, start.latents[index]
        scheduler, null_scheduler = self._descending_scheduler(route), self._descending_scheduler(route)
        # The null edit, and every row of an image, get the same step noise.
        null_generator = clone_generator(generator)
        row_generator = generator
        if isinstance(generator, list) and index.tolist() != list(range(len(generator))):
            row_generator = [clone_generator(generator[image]) for image in index.tolist()]  # type: ignore[misc]
        step_kwargs = scheduler_step_kwargs(scheduler, eta=route.eta, generator=row_generator)
        null_step_kwargs = scheduler_step_kwargs(scheduler, eta=route.eta, generator=null_generator)
        self._num_timesteps = len(scheduler.timesteps)
        is_on_null = True  # until a step is guided, or a callback has changed the latents
        for step, t in enumerate(self._steps(scheduler.timesteps)):
            if self.interrupt:
                continue
            null_output = self._predict(null_latents, t)
            is_on_null = is_on_null and self._is_unguided()
            if is_on_null:
                model_output = null_output[index]
            elif self._is_unguided():
                model_output = self._predict(latents, t)
            else:
                model_output, _ = self._predict_edited(
                    latents, t, rows, route, null_latents[index], null_output[index], scheduler
                )
            latents = scheduler.step(model_output, t, latents, **step_kwargs).prev_sample
            null_latents = null_scheduler.step(null_output, t, null_latents, **null_step_kwargs).prev_sample
            if rows.mask is not None:
                latents = rows.mask * latents + (1 - rows.mask) * null_latents[index]
            if on_step is not None:
                before = latents, null_latents
                latents, null_latents = on_step(step, int(t), *before)
                is_on_null = is_on_null and latents is before[0] and null_latents is before[1]
        return latents, null_latents

    def _steps(self: Any, timesteps: torch.Tensor) -> Any:
        """The timesteps, with a progress bar."""
        return timesteps if self._is_quiet else self.progress_bar(timesteps)

    def _predict(self: Any, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The model's unguided prediction."""
        return self.unet(latents, t, return_logits=False).sample

    def _predict_edited(
        self: Any,
        latents: torch.Tensor,
        t: torch.Tensor,
        rows: EditRows,
        route: Route,
        null_latents: torch.Tensor,
        null_output: torch.Tensor | None,
        scheduler: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The guided and the unguided prediction for each row; `null_*` are the null edit's, for labels to hold."""
        prediction_type = self.scheduler.config.prediction_type
        alpha, target = self.scheduler.alphas_cumprod[t], rows.target
        place = (prediction_type, route.guidance_mode, route.classifier)
        if target.hold > 0:
            if null_output is None:
                null_output = self._predict(null_latents, t)
            target = hold_at(target, self.unet, null_latents, t, null_output, alpha, *place)
        predicted = predict_guided(self.unet, latents, t, target, self._guidance_scale, alpha, *place)
        if not route.fade_guidance:
            return predicted.model_output, predicted.unguided
        step = (alpha, scheduler.noise_weight(), prediction_type)
        return fade(predicted, latents, target, self._guidance_scale, *step), predicted.unguided

    def _is_unguided(self) -> bool:
        return bool((torch.as_tensor(self._guidance_scale) == 0).all())

    def _descending_scheduler(self: Any, route: Route) -> Any:
        """A fresh scheduler for the way down: DDIM on our grid, any other at chosen timesteps."""
        if isinstance(self.scheduler, DDIMScheduler):
            scheduler = MultistepDDIMScheduler.from_config(self.scheduler.config)
            scheduler.set_grid(route.num_inference_steps, route.max_timestep, solver_order=route.solver_order)
        else:
            scheduler = self.clone_scheduler()
            timesteps = time_grid(route.num_inference_steps, route.max_timestep)[:0:-1].tolist()
            scheduler.set_timesteps(timesteps=timesteps)
        return scheduler

    def _descending_timesteps(self: Any, route: Route) -> list[int]:
        return self._descending_scheduler(route).timesteps.tolist()
