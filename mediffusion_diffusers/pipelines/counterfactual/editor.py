"""From a noise level back to a clean image, under guidance and without (paper Sec. 3.4 and 3.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDIMScheduler

from ...guidance import GuidedPrediction, LatentClassifier, fade, hold_at, predict_epsilon, predict_guided
from ...regions import region_of_change
from ...schedulers import MultistepDDIMScheduler, time_grid
from ..base import Generators, clone_generator, scheduler_step_kwargs
from ..call_state import CallState
from .question import Question
from .settings import CounterfactualSettings
from .start import Start


# Called after each step with its number, its timestep, the edited and the null latents; returns both.
OnStep = Callable[[int, int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Watch:
    """How an edit is watched from outside.

    Args:
        state: of the call.
        shown: wraps timesteps into a progress bar.
        on_step: the user's callback, or None.
    """

    state: CallState
    shown: Callable[[Any], Iterable[Any]]
    on_step: OnStep | None = None

    def silent(self) -> Watch:
        """For a search, which shows one bar for itself and calls back for none of its trials."""
        return Watch(self.state, iter)

    def after(
        self, step: int, t: torch.Tensor, latents: torch.Tensor, null_latents: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both latents as the callback leaves them."""
        return (latents, null_latents) if self.on_step is None else self.on_step(step, int(t), latents, null_latents)


@dataclass(frozen=True)
class Edit:
    """Edited latents, and how each came about.

    Args:
        latents: of the counterfactuals, shape `(rows, channels, height, width)`.
        null_latents: of the null edits, which several counterfactuals may share.
        null_index: null edit of each row, shape `(rows,)`, on the CPU.
        guidance_scales: scale of each row, shape `(rows,)`.
        strengths: strength of each row, shape `(rows,)`.
        reached: whether a search reached its goal, bool, shape `(rows,)`; None without a search.
        region: where rows could change, shape `(rows or 1, 1, *latent_size)` in [0, 1]; None for everywhere.
        agreement: of several noises on the change of each position, shape `(rows, 1, *latent_size)`; None without.
    """

    latents: torch.Tensor
    null_latents: torch.Tensor
    null_index: torch.Tensor
    guidance_scales: torch.Tensor
    strengths: torch.Tensor
    reached: torch.Tensor | None = None
    region: torch.Tensor | None = None
    agreement: torch.Tensor | None = None


class Editor:
    """What both ways back share: the models, the steps, and one guided evaluation.

    Args:
        unet: the joint model.
        scheduler: of the pipeline.
        settings: resolved ones.
        classifier: of clean latents, for `guidance_mode="external"`.
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        settings: CounterfactualSettings,
        classifier: LatentClassifier | None = None,
    ):
        self.unet, self.scheduler, self.settings, self.classifier = unet, scheduler, settings, classifier
        self.prediction_type = scheduler.config.prediction_type
        self.alphas_cumprod = scheduler.alphas_cumprod.cpu()  # no step waits for a device

    def edit(self, start: Start, question: Question, generator: Generators, watch: Watch) -> Edit:
        """Denoise the rows under guidance, and the null edit of each image from the same start without.

        Args:
            start: where the way back begins, for each image.
            question: the rows.
            generator: of step noise, where the scheduler adds some.
            watch: of the call.
        """
        watch.state.guidance_scale = question.guidance_scale
        latents, null_latents = self._denoise(start, question.to(start.latents), generator, watch)
        return self._edit_of(start, question, latents, null_latents)

    def _edit_of(self, start: Start, question: Question, latents: torch.Tensor, null_latents: torch.Tensor) -> Edit:
        """Edited latents with what is known of each row."""
        strengths = torch.full((len(question),), float(start.strength))
        scales, region = question.scales.float(), question.region
        return Edit(latents, null_latents, question.image_index, scales, strengths, region=region)

    def timesteps(self, start: Start) -> list[int]:
        """Of the guided evaluations, noisiest first."""
        return self._descent(start).timesteps.tolist()

    def classify(self, latents: torch.Tensor) -> torch.Tensor:
        """Logits of clean latents, of the classifier that guides; differentiable, shape `(rows, num_labels)`."""
        if self.classifier is not None:
            return self.classifier(latents)
        return self.unet(latents, 0, return_sample=False).logits

    def _denoise(
        self, start: Start, question: Question, generator: Generators, watch: Watch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def _descent(self, start: Start) -> Any:
        """A fresh scheduler for the way down: DDIM on our grid, any other at chosen timesteps."""
        num_steps = self.settings.num_inference_steps
        if isinstance(self.scheduler, DDIMScheduler):
            scheduler = MultistepDDIMScheduler.from_config(self.scheduler.config)
            scheduler.set_grid(num_steps, start.timestep, solver_order=self.settings.solver_order)
        else:
            scheduler = type(self.scheduler).from_config(self.scheduler.config)
            scheduler.set_timesteps(timesteps=time_grid(num_steps, start.timestep)[:0:-1].tolist())
        return scheduler

    def _predict(self, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The model's unguided prediction."""
        return self.unet(latents, t, return_logits=False).sample

    def _predict_guided(
        self,
        latents: torch.Tensor,
        t: torch.Tensor,
        question: Question,
        guidance_scale: Any,
        null_latents: torch.Tensor,
        null_output: torch.Tensor | None,
        null_type: str,
        scheduler: Any = None,
    ) -> GuidedPrediction:
        """The guided and the unguided prediction for each row.

        Args:
            latents: z_t of each row.
            t: a scalar.
            question: the rows.
            guidance_scale: of this step.
            null_latents: the null edit's z_t of each row, for labels to hold.
            null_output: the model's unguided prediction there, or None where it is not known.
            null_type: `prediction_type` of that prediction.
            scheduler: at this step, for guidance that fades.
        """
        alpha, target = self.alphas_cumprod[t], question.target
        place = (self.settings.guidance_mode, self.classifier)
        if target.hold > 0:
            if null_output is None:
                null_output, null_type = self._predict(null_latents, t), self.prediction_type
            target = hold_at(target, self.unet, null_latents, t, null_output, alpha, null_type, *place)
        predicted = predict_guided(self.unet, latents, t, target, guidance_scale, alpha, self.prediction_type, *place)
        if not self.settings.fade_guidance:
            return predicted
        step = (alpha, scheduler.noise_weight(), self.prediction_type)
        return replace(predicted, model_output=fade(predicted, latents, target, guidance_scale, *step))


class FollowPath(Editor):
    r"""Integrate only the deviation d = z - z* from the inversion's path z*.

    DDIM's step is linear in (z, eps), so that d takes the same step with `eps'(z* + d) - eps(z*)`. The path needs no
    evaluation but those of the inversion, and whatever the inversion loses it does not lose twice: without guidance d
    stays 0, and the null edit is the encoded image itself.
    """

    def _descent(self, start: Start) -> Any:
        scheduler = MultistepDDIMScheduler.from_config({**self.scheduler.config, "prediction_type": "epsilon"})
        order = self.settings.solver_order
        scheduler.set_grid(self.settings.num_inference_steps, start.timestep, solver_order=order)
        return scheduler

    def _denoise(
        self, start: Start, question: Question, generator: Generators, watch: Watch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        index = question.image_index.to(start.latents.device)
        scheduler = self._descent(start)
        deviation = torch.zeros_like(start.latents[index])
        is_on_path = True  # until a step is guided, or a callback has changed the latents
        for step, t in watch.state.steps(scheduler.timesteps, watch.shown):
            place = len(scheduler.timesteps) - step
            alpha = scheduler.alphas_cumprod[t]
            scale = watch.state.guidance_scale
            is_on_path = is_on_path and is_unguided(scale)
            if alpha == 0:  # z_t is noise alone, whatever the edit: there is nothing to deviate from yet
                scheduler.skip_step()
            else:
                change = torch.zeros_like(deviation)
                if not is_on_path:
                    on_path = start.path_latents[place][index]
                    latents = on_path + deviation
                    epsilon = start.path_epsilons[place][index] if step else None
                    null = (on_path, epsilon, "epsilon")
                    predicted = self._predict_guided(latents, t, question, scale, *null, scheduler)
                    change = predict_epsilon(predicted.model_output, latents, alpha, self.prediction_type)
                    if epsilon is None:  # the top of the path, where z = z*
                        epsilon = predict_epsilon(predicted.unguided, latents, alpha, self.prediction_type)
                    change = change - epsilon
                deviation = scheduler.step(change, t, deviation).prev_sample
            if question.region is not None:
                deviation = deviation * question.region
            if watch.on_step is not None:
                null_latents = start.path_latents[place - 1]
                latents = null_latents[index] + deviation
                changed, _ = watch.after(step, t, latents, null_latents)
                if changed is not latents:
                    deviation, is_on_path = changed - null_latents[index], False
        null_latents = start.path_latents[0]
        return null_latents[index] + deviation, null_latents


class Sample(Editor):
    """Denoise the edited rows and the null edits, each by the scheduler's own steps."""

    def _denoise(
        self, start: Start, question: Question, generator: Generators, watch: Watch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        index = question.image_index.to(start.latents.device)
        null_latents, latents = start.latents, start.latents[index]
        scheduler, null_scheduler = self._descent(start), self._descent(start)
        # The null edit, and every row of an image, get the same step noise.
        null_generator = clone_generator(generator)
        images = question.image_index.tolist()
        if isinstance(generator, list) and images != list(range(len(generator))):
            generator = [clone_generator(generator[image]) for image in images]  # type: ignore[misc]
        eta = self.settings.eta
        step_kwargs = scheduler_step_kwargs(scheduler, eta=eta, generator=generator)
        null_step_kwargs = scheduler_step_kwargs(scheduler, eta=eta, generator=null_generator)
        is_on_null = True  # until a step is guided, or a callback has changed the latents
        for step, t in watch.state.steps(scheduler.timesteps, watch.shown):
            null_output, scale = self._predict(null_latents, t), watch.state.guidance_scale
            is_on_null = is_on_null and is_unguided(scale)
            if is_on_null:
                model_output = null_output[index]
            elif is_unguided(scale):
                model_output = self._predict(latents, t)
            else:
                null = (null_latents[index], null_output[index], self.prediction_type)
                model_output = self._predict_guided(latents, t, question, scale, *null, scheduler).model_output
            latents = scheduler.step(model_output, t, latents, **step_kwargs).prev_sample
            null_latents = null_scheduler.step(null_output, t, null_latents, **null_step_kwargs).prev_sample
            if question.region is not None:
                latents = question.region * latents + (1 - question.region) * null_latents[index]
            before = latents, null_latents
            latents, null_latents = watch.after(step, t, *before)
            is_on_null = is_on_null and latents is before[0] and null_latents is before[1]
        return latents, null_latents


def is_unguided(guidance_scale: Any) -> bool:
    """Whether all scales are 0."""
    return bool((torch.as_tensor(guidance_scale) == 0).all())


class WithinItsRegion:
    """An editor that edits twice: everywhere, to find the region that the second edit is confined to.

    Args:
        editor: makes both edits.
    """

    def __init__(self, editor: Any):
        self.editor = editor

    def edit(self, start: Start, question: Question, generator: Generators, watch: Watch) -> Edit:
        """As for an `Editor`; both edits get the same step noise."""
        found = self.editor.edit(start, question, clone_generator(generator), watch)
        region = region_of_change(found.latents - found.null_latents[found.null_index])
        return self.editor.edit(start, question.within(region), generator, watch)
