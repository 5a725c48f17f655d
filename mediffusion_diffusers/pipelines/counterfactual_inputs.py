"""Arguments of the counterfactual pipeline: defaults, and checks before any work is done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.utils import logging

from ..guidance import GUIDANCE_MODES
from .base import Generators, MediffusionPipelineMixin, check_number, check_output_type


logger = logging.get_logger(__name__)

STARTS = ("inversion", "noise")
MASK_WORDS = ("auto", "everywhere")

# Used where neither the caller nor the checkpoint's `guidance_defaults` says otherwise.
DEFAULT_SETTINGS: dict[str, Any] = {
    "strength": 0.3,
    "guidance_scale": 10.0,
    "num_inference_steps": 10,
    "start": "inversion",
    "guidance_mode": "zt",
    "follow_inversion": False,
    "mask": "everywhere",
    "fade_guidance": False,
}


class CounterfactualInputsMixin(MediffusionPipelineMixin):
    """Argument handling of [`MediffusionCounterfactualPipeline`]."""

    def resolve_settings(self, **arguments: Any) -> dict[str, Any]:
        """Fill arguments that are `None` from the checkpoint's `guidance_defaults`, then from this module's.

        Args:
            arguments: any of `strength`, `guidance_scale`, `num_inference_steps`, `start`, `guidance_mode`,
                `follow_inversion`, `mask`, `fade_guidance`.

        Returns:
            All of them.
        """
        stored = self.unet.config.guidance_defaults or {}
        unknown = sorted(stored.keys() - DEFAULT_SETTINGS.keys())
        if unknown:
            logger.warning(f"The checkpoint's `guidance_defaults` hold {unknown}, which this version does not know.")
        settings = dict(DEFAULT_SETTINGS)
        for source in (stored, arguments):
            settings.update({name: source[name] for name in settings if source.get(name) is not None})
        return settings

    def strength_of_snr(self, start_snr: float) -> float:
        """The strength whose noise level has this signal-to-noise ratio, abar_t / (1 - abar_t).

        Latents have unit variance after the autoencoder's `scaling_factor`, so that the ratio, unlike a timestep,
        means the same for other noise schedules.

        Raises:
            ValueError: if it is not above 0 or lies outside the schedule.
        """
        check_number("start_snr", start_snr)
        alphas = self.scheduler.alphas_cumprod.double().cpu()
        ratios = alphas / (1 - alphas)
        if not ratios[-1] <= start_snr <= ratios[1]:
            raise ValueError(
                f"`start_snr` must lie in [{float(ratios[-1]):.3g}, {float(ratios[1]):.3g}], what this noise schedule "
                f"offers, but got {start_snr}."
            )
        timestep = int((ratios.log() - math.log(start_snr)).abs().argmin())
        return timestep / self.scheduler.config.num_train_timesteps

    def _check_strength(self, strength: Any) -> None:
        check_number("strength", strength)
        if not 0 < strength <= 1:
            raise ValueError(
                f"`strength` must lie in (0, 1], the share of the noise schedule to go back, but got {strength}. "
                "The paper uses 0.05 to 0.3."
            )

    def check_inputs(
        self,
        settings: dict[str, Any],
        scales: Sequence[float],
        max_timestep: int,
        num_inversion_steps: int | None,
        eta: float,
        solver_order: int,
        hold: float,
        generator: Generators,
        noise: torch.Tensor | None,
        batch_size: int,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Refuse arguments that cannot work, before any work is done."""
        strength, start = settings["strength"], settings["start"]
        for scale in scales:
            check_number("guidance_scale", scale)
        for name, value in (("eta", eta), ("hold", hold)):
            check_number(name, value)
        if any(not 0 <= scale < math.inf for scale in scales):
            raise ValueError(f"`guidance_scale` must be at least 0 and finite, but got {settings['guidance_scale']}.")
        if not 0 <= hold < math.inf:
            raise ValueError(f"`hold` must be at least 0 and finite, but got {hold}.")
        mask = settings["mask"]
        if isinstance(mask, str) and mask not in MASK_WORDS:
            raise ValueError(f"`mask` must be a mask, boxes or one of {MASK_WORDS}, but got {mask!r}.")
        if start not in STARTS:
            raise ValueError(f"`start` must be one of {STARTS}, but got {start!r}.")
        if settings["guidance_mode"] not in GUIDANCE_MODES:
            raise ValueError(
                f"`guidance_mode` must be one of {GUIDANCE_MODES}, but got {settings['guidance_mode']!r}."
            )
        for name, steps in (
            ("num_inference_steps", settings["num_inference_steps"]),
            ("num_inversion_steps", num_inversion_steps),
        ):
            if steps is None:
                continue
            check_number(name, steps, whole=True)
            if not 1 <= steps <= max_timestep:
                raise ValueError(
                    f"`{name}` counts the steps between the start and the clean image and must lie in "
                    f"[1, {max_timestep}] at `strength={strength}`, but got {steps}."
                )
        if start == "inversion" and (isinstance(self.scheduler, DDPMScheduler) or eta > 0):
            raise ValueError(
                "`start='inversion'` needs deterministic steps, but the scheduler is DDPM or `eta` is above 0. Use "
                "`start='noise'`, or a DDIMScheduler with `eta=0`."
            )
        if not 0 <= eta <= 1:
            raise ValueError(f"`eta` must lie in [0, 1], but got {eta}.")
        if solver_order not in (1, 2):
            raise ValueError(f"`solver_order` must be 1 (DDIM) or 2 (Adams-Bashforth), but got {solver_order}.")
        expected = (batch_size, self.unet.config.in_channels, *self.latent_size)
        if noise is not None and start != "noise":
            raise ValueError(f"`noise` is for `start='noise'`, but `start` is {start!r}.")
        if noise is not None and tuple(noise.shape) != expected:
            raise ValueError(f"`noise` must have the latents' shape {expected}, but got {tuple(noise.shape)}.")
        self.check_generator(generator, batch_size)
        check_output_type(output_type)
        self.check_callback_inputs(callback_on_step_end_tensor_inputs)

    def check_search(
        self,
        settings: dict[str, Any],
        target_probability: float | None,
        max_guidance_scale: float | None,
        max_strength: float | None,
        scales: Sequence[float],
    ) -> None:
        """Refuse arguments of a search that cannot work."""
        if target_probability is None:
            if max_guidance_scale is not None or max_strength is not None:
                raise ValueError("`max_guidance_scale` and `max_strength` bound a search: give `target_probability`.")
            return
        check_number("target_probability", target_probability)
        if not 0 < target_probability < 1:
            raise ValueError(
                f"`target_probability` must lie in (0, 1), but got {target_probability}; 0.1 asks for at most 0.1 of "
                "labels in `away` and at least 0.9 of labels in `towards`."
            )
        is_list = isinstance(settings["guidance_scale"], Sequence)
        if min(scales) == 0 or (is_list and len(set(scales)) > 1):
            raise ValueError(
                "With `target_probability`, `guidance_scale` is the first scale to try: above 0, and no list."
            )
        for name, value, least in (
            ("max_guidance_scale", max_guidance_scale, min(scales)),
            ("max_strength", max_strength, settings["strength"]),
        ):
            if value is not None:
                check_number(name, value)
                if not least <= value < math.inf:
                    raise ValueError(f"`{name}` must be at least {least}, where the search begins, but got {value}.")
        if max_strength is not None and max_strength > 1:
            raise ValueError(f"`max_strength` must be at most 1, but got {max_strength}.")


def count_rows(num_images: int, **per_row: int | None) -> int:
    """Number of counterfactuals of a call: of one image, or of each, there may be several.

    Args:
        num_images: images given.
        per_row: by argument, how many entries it has, or None where it holds for all.

    Returns:
        The number of rows; image i has the rows `i * rows / num_images` and following.

    Raises:
        ValueError: if the numbers do not fit together.
    """
    given = {name: count for name, count in per_row.items() if count is not None}
    num_rows = max([num_images, *given.values()])
    for name, count in given.items():
        if count != num_rows or num_rows % num_images:
            raise ValueError(
                f"`{name}` as a list of lists must hold one list of labels for each of the {num_images} images (or "
                f"the same number of them for every image), but it holds {count} items."
                if name != "guidance_scale"
                else f"`guidance_scale` as a list must hold one scale per counterfactual, {num_rows}, or the same "
                f"number of them for each of the {num_images} images, but it holds {count}."
            )
    return num_rows
