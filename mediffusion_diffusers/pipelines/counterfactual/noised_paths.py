"""The deviation of an edit from freshly noised paths of the image, averaged over noises.

The clean latents z_0 are noised anew at every step: z* = sqrt(abar) z_0 + sqrt(1 - abar) n. What guidance moves is the
deviation d of the edit from that path, which takes DDIM's step with the difference of two noise predictions,
eps'(z* + d) - eps(z*). Averaged over several noises n, that difference is what guidance changes of an image whatever
noise lies over it. Without guidance d stays 0, so that the null edit is the image itself.

This is the edit-friendly inversion of DDPM (Huberman-Spiegelglas et al., 2024, arXiv:2304.06140), whose noises are
independent from step to step, written as a deviation: the noise that its inversion stores cancels out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ...guidance import attribute_change, predict_epsilon
from ...regions import region_of_evidence
from ...schedulers import MultistepDDIMScheduler
from ..base import Generators, clone_generator
from .editor import Edit, Editor, Watch
from .question import Question
from .settings import CounterfactualSettings, timestep_of
from .start import Start


# Positions of latents that go through the U-Net at once, if one noise of all rows is not more: 64 latents of 32x32.
_MAX_POSITIONS = 2**16


class NoisedPaths:
    """Noise clean latents afresh for every step, and predict the noise of each: the half that no guidance changes.

    All targets of an image share it, and all trials of a search.

    Args:
        unet: the joint model.
        scheduler: of the pipeline.
        settings: resolved ones.
        latents: clean, one per image.
        generator: one per image.
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        settings: CounterfactualSettings,
        latents: torch.Tensor,
        generator: Sequence[torch.Generator],
    ):
        self.unet, self.scheduler, self.settings, self.latents = unet, scheduler, settings, latents
        self.generator, self.views = generator, Views(settings.views)

    def begin(self, images: torch.Tensor, strength: float, shown: Callable[[Any], Iterable[Any]]) -> Start:
        """The paths of some of the images; the first step's predictions are left to the guided evaluation.

        Args:
            images: their indices, on the CPU.
            strength: share of the noise schedule where paths begin.
            shown: wraps the timesteps into a progress bar.
        """
        clean, timestep = self.latents[images], timestep_of(strength, self.scheduler)
        scheduler = descent(self.scheduler, self.settings, timestep)
        path_latents, path_epsilons = [], []
        for noise, t in zip(self._noises(images), scheduler.timesteps, strict=True):
            alpha = scheduler.alphas_cumprod[t]
            path_latents.append((alpha.sqrt() * clean.float() + (1 - alpha).sqrt() * noise).to(clean.dtype))
        for step, t in shown(list(enumerate(scheduler.timesteps))[1:]):
            place = (scheduler.alphas_cumprod[t], scheduler.config.prediction_type)
            path_epsilons.append(self._epsilon(path_latents[step], step, t, *place))
        return Start(clean, strength, timestep, (clean, *path_latents[::-1]), tuple(path_epsilons[::-1]))

    def _epsilon(
        self, latents: torch.Tensor, step: int, t: torch.Tensor, alpha: torch.Tensor, prediction_type: str
    ) -> torch.Tensor:
        """The noise that the model sees in latents of shape `(noises, images, ...)`."""
        epsilons = []
        for noises in chunks(latents):
            seen = self.views.show(latents[noises], step, noises.start).flatten(0, 1)
            model_output = self.unet(seen, t, return_logits=False).sample
            epsilon = predict_epsilon(model_output, seen, alpha, prediction_type).unflatten(0, (-1, latents.shape[1]))
            epsilons.append(self.views.put_back(epsilon, step, noises.start))
        return torch.cat(epsilons)

    def _noises(self, images: torch.Tensor) -> torch.Tensor:
        """For each step, antithetic pairs: shape `(steps, noises, images, channels, height, width)`, float32.

        An image's noise depends on its generator alone, and is the same at every strength of a search.
        """
        num_noises, shape = self.settings.num_noises, self.latents.shape[1:]
        assert num_noises is not None  # resolved
        drawn = []
        for image in images.tolist():
            generator = clone_generator(self.generator[image])
            assert isinstance(generator, torch.Generator)
            size = (self.settings.num_inference_steps, (num_noises + 1) // 2, *shape)
            half = torch.randn(size, generator=generator, device=generator.device, dtype=torch.float32)
            drawn.append(torch.stack([half, -half], dim=2).flatten(1, 2)[:, :num_noises])
        return torch.stack(drawn, dim=2).to(self.latents.device)


class FollowNoisedPaths(Editor):
    """Integrate the mean deviation from the noised paths under guidance; takes what any `Editor` takes."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.views = Views(self.settings.views)

    def edit(self, start: Start, question: Question, generator: Generators, watch: Watch) -> Edit:
        """As for any editor; a region that is to be found is found in the edit itself.

        Args:
            start: of `NoisedPaths`.
            question: the rows.
            generator: not used, since the paths have been noised.
            watch: of the call. A callback's latents are the image's with the deviation so far.
        """
        watch.state.guidance_scale = question.guidance_scale
        question, null_latents = question.to(start.latents), start.latents
        each, deviation = self._deviations(start, question, watch)
        region, clean = question.region, null_latents[question.image_index]
        if self.settings.finds_region:
            evidence = attribute_change(self.classify, clean, deviation, question.target)
            region = region_of_evidence(evidence, in_one_place=adds_one_finding(question.target.direction))
            deviation = region * deviation
        latents = (clean.float() + deviation).to(clean.dtype)
        return replace(
            self._edit_of(start, question, latents, null_latents), region=region, agreement=agreement_of(each)
        )

    def _descent(self, start: Start) -> MultistepDDIMScheduler:
        return descent(self.scheduler, self.settings, start.timestep, prediction_type="epsilon")

    def _deviations(self, start: Start, question: Question, watch: Watch) -> tuple[torch.Tensor, torch.Tensor]:
        """What each noise says, shape `(noises, rows, channels, height, width)`, and their mean; float32."""
        index = question.image_index.to(start.latents.device)
        clean, scheduler = start.latents[index], self._descent(start)
        each = torch.zeros_like(start.path_latents[1][:, index], dtype=torch.float32)
        deviation = each[0]
        parts = [(noises, question.repeat(noises.stop - noises.start)) for noises in chunks(each)]
        has_moved = torch.zeros(len(question), dtype=torch.bool)  # by guidance or by a callback
        for step, t in watch.state.steps(scheduler.timesteps, watch.shown):
            has_moved |= torch.as_tensor(watch.state.guidance_scale) != 0
            if scheduler.alphas_cumprod[t] == 0 or not has_moved.any():
                scheduler.skip_step()  # z_t is noise alone, or the image's: there is nothing to deviate from yet
            else:
                scale = watch.state.guidance_scale
                changes = [
                    self._change(start, part, index, noises, deviation, step, t, scale) for noises, part in parts
                ]
                # Where nothing has been pushed, two evaluations of the same latents differ by rounding alone.
                change = torch.cat(changes) * has_moved.to(each, non_blocking=True).view(-1, 1, 1, 1)
                # The noise of Eq. 12 of DDIM is that of the path, so that none comes to the deviation.
                noise: dict[str, Any] = {"eta": self.settings.eta, "variance_noise": torch.zeros(())}
                each = scheduler.step(change, t, each, return_dict=False, **noise)[0]
                each = each if question.region is None else question.region * each
                deviation = each.mean(0)
            if watch.on_step is not None:
                latents = clean + deviation.to(clean.dtype)
                changed, _ = watch.after(step, t, latents, start.latents)
                if changed is not latents:
                    has_moved[:] = True
                    each = each + (changed.float() - clean.float() - deviation)
                    deviation = changed.float() - clean.float()
        return each, deviation

    def _change(
        self,
        start: Start,
        question: Question,
        index: torch.Tensor,
        noises: slice,
        deviation: torch.Tensor,
        step: int,
        t: torch.Tensor,
        guidance_scale: Any,
    ) -> torch.Tensor:
        """By how much guidance and the deviation change the predicted noise of some of the noises; float32."""
        alpha, place = self.alphas_cumprod[t], len(start.path_epsilons) - step
        path = start.path_latents[place + 1][noises][:, index]

        def seen(latents: torch.Tensor) -> torch.Tensor:
            return self.views.show(latents, step, noises.start).flatten(0, 1)

        latents = seen((path + deviation).to(path.dtype))
        epsilon = seen(start.path_epsilons[place][noises][:, index]) if step else None
        if isinstance(guidance_scale, torch.Tensor) and guidance_scale.ndim:
            guidance_scale = guidance_scale.repeat(len(path))
        predicted = self._predict_guided(latents, t, question, guidance_scale, seen(path), epsilon, "epsilon")
        if epsilon is None:  # the top of the paths, where d = 0
            epsilon = predict_epsilon(predicted.unguided, latents, alpha, self.prediction_type)
        guided = predict_epsilon(predicted.model_output, latents, alpha, self.prediction_type)
        change = (guided.float() - epsilon.float()).unflatten(0, path.shape[:2])
        return self.views.put_back(change, step, noises.start)


class Views:
    """How a noised copy is shown to the model: shifted by up to one latent position each way, or mirrored as well.

    A convolutional network with strides sees a shifted image with other eyes, so that what its answers, put back in
    place, have in common belongs to the image rather than to the grid.

    Args:
        kind: `"shifts"`, `"shifts_and_flips"` or `"none"`.
    """

    def __init__(self, kind: str | None):
        self.kind = kind

    def show(self, latents: torch.Tensor, step: int, first: int = 0) -> torch.Tensor:
        """Latents of consecutive noises as the model sees them.

        Args:
            latents: shape `(noises, images, channels, height, width)`.
            step: number of the step, on which views depend too.
            first: number of the first of the noises.
        """
        return torch.stack([self._show(each, first + step + place) for place, each in enumerate(latents)])

    def put_back(self, latents: torch.Tensor, step: int, first: int = 0) -> torch.Tensor:
        """Undo `show`, bit for bit; takes the same arguments."""
        return torch.stack([self._put_back(each, first + step + place) for place, each in enumerate(latents)])

    def _show(self, latents: torch.Tensor, number: int) -> torch.Tensor:
        shift, is_mirrored = self._view(number)
        shifted = latents.roll(shift, (-2, -1)) if any(shift) else latents
        return shifted.flip(-1) if is_mirrored else shifted

    def _put_back(self, latents: torch.Tensor, number: int) -> torch.Tensor:
        (down, right), is_mirrored = self._view(number)
        upright = latents.flip(-1) if is_mirrored else latents
        return upright.roll((-down, -right), (-2, -1)) if down or right else upright

    def _view(self, number: int) -> tuple[tuple[int, int], bool]:
        if self.kind == "none":
            return (0, 0), False
        right, down = number % 2, number // 2 % 2
        return (down, right), self.kind == "shifts_and_flips" and bool(number // 2 % 2)


def descent(scheduler: Any, settings: CounterfactualSettings, timestep: int, **config: Any) -> MultistepDDIMScheduler:
    """A fresh DDIM scheduler of first order for the way down, whatever scheduler the pipeline has.

    Args:
        scheduler: of the pipeline, of which the noise schedule is taken.
        settings: resolved ones.
        timestep: where paths begin.
        config: what replaces entries of the scheduler's config.
    """
    own = MultistepDDIMScheduler.from_config({**scheduler.config, **config})
    own.set_grid(settings.num_inference_steps, timestep, solver_order=1)
    return own


def chunks(latents: torch.Tensor) -> list[slice]:
    """Which noises go through the U-Net at once; latents have the shape `(noises, rows, channels, height, width)`."""
    num_noises, num_rows, _, height, width = latents.shape
    size = max(1, _MAX_POSITIONS // (num_rows * height * width))
    return [slice(first, min(first + size, num_noises)) for first in range(0, num_noises, size)]


def adds_one_finding(direction: torch.Tensor) -> torch.Tensor:
    """Whether all that is asked of a row is to add one finding.

    Args:
        direction: +1 towards, -1 away, 0 not targeted, shape `(rows, num_labels)`.

    Returns:
        Bool, shape `(rows,)`.
    """
    return ((direction > 0).sum(1) == 1) & ~(direction < 0).any(1)


def agreement_of(deviations: torch.Tensor) -> torch.Tensor:
    """How far the noises agree on the change of a position: the size of their mean over their mean size.

    Args:
        deviations: of each noise, shape `(noises, rows, channels, height, width)`.

    Returns:
        Root of the squares summed over channels, shape `(rows, 1, height, width)`, in [0, 1]: 1 where all noises make
        the same change, about `1 / sqrt(noises)` where they have nothing in common, 0 where nothing changed.
    """
    mean = deviations.mean(0).square().sum(1, keepdim=True)
    size = deviations.square().sum(2, keepdim=True).mean(0)
    return torch.where(size > 0, mean / size, 0.0).clamp(max=1.0).sqrt()
