"""The options of a call, settled: what it gives, else what the checkpoint stores, else the defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.utils import logging

from ...counterfactual_options import CounterfactualOptions, stored_options
from ...guidance import plain_scale, values_of_scale
from ...options import check_number, check_options
from .quality import spell_out


logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class CounterfactualSettings(CounterfactualOptions):
    """How a counterfactual is made: the options of [`CounterfactualOptions`], resolved and checked together."""

    @classmethod
    def resolve(
        cls, call: Mapping[str, Any], checkpoint: Mapping[str, Any] | None, scheduler: Any
    ) -> CounterfactualSettings:
        """The settings of a call: what it gives, else what the checkpoint stores, else the defaults above.

        What the checkpoint alone asks for gives way where the call or the scheduler cannot do it; what the call asks
        for does not.

        Args:
            call: options by name; `None` leaves one to the checkpoint.
            checkpoint: its `guidance_defaults`.
            scheduler: of the pipeline.

        Raises:
            ValueError: for a value outside its range, or settings that contradict each other or the scheduler.
        """
        given = _given(call)
        unknown = sorted(given.keys() - {entry.name for entry in fields(cls)})
        if unknown:
            raise ValueError(f"The counterfactual pipeline has no options {unknown}.")
        if not isinstance(checkpoint, Mapping | None):
            raise ValueError(f"The checkpoint's `guidance_defaults` must be a dict, but are {checkpoint!r}.")
        stored = _given(checkpoint or {})
        foreign = sorted(stored.keys() - set(stored_options()))
        if foreign:
            logger.warning(f"The checkpoint's `guidance_defaults` hold {foreign}, which this version does not know.")
        stored = {name: value for name, value in stored.items() if name not in foreign}
        if given.keys() & {"guidance_scale", "target_probability"}:  # how far to go is said already
            stored.pop("stop_probability", None)
        try:
            _checked(cls(**stored))
        except ValueError as error:
            raise ValueError(f"The checkpoint's `guidance_defaults` cannot be used: {error}") from None
        _checked(cls(**given))
        settings = _checked(cls(**spell_out(given, stored)))
        stored_start = cls(**spell_out({}, stored)).start
        if settings.start != stored_start and "guidance_scale" in stored.keys() - given.keys():
            logger.warning(
                f"The checkpoint's `guidance_scale`, {stored['guidance_scale']}, was chosen for "
                f"`start={stored_start!r}` and means something else to {settings.start!r}: give a `guidance_scale`."
            )
        return settings._at_a_strength(given, scheduler)._completed(given, scheduler)

    def check(self, scheduler: Any) -> None:
        """Refuse resolved settings that contradict each other or the scheduler.

        Raises:
            ValueError: naming the option.
        """
        max_timestep = timestep_of(self.strength, scheduler)
        for name in ("num_inference_steps", "num_inversion_steps"):
            steps = getattr(self, name)
            if name == "num_inversion_steps" and self.start != "inversion":
                continue
            if not 1 <= steps <= max_timestep:
                raise ValueError(
                    f"`{name}` counts the steps between the start and the clean image and must lie in "
                    f"[1, {max_timestep}] at `strength={self.strength}`, but got {steps}."
                )
        if self.start == "inversion" and (isinstance(scheduler, DDPMScheduler) or self.eta):
            raise ValueError(
                "`start='inversion'` needs deterministic steps, but the scheduler is DDPM or `eta` is above 0. Use "
                "`start='noise'` or `start='noised_paths'`, or a DDIMScheduler with `eta=0`."
            )
        for name in ("strength", "max_strength"):
            strength = getattr(self, name)
            if strength is None or scheduler.config.prediction_type != "epsilon":
                continue
            if scheduler.alphas_cumprod[timestep_of(strength, scheduler)] == 0:
                raise ValueError(
                    f"`{name}={strength}` starts at pure noise (zero terminal SNR), where a predicted noise says "
                    f"nothing of the image. Choose a smaller `{name}`, or a model that predicts v."
                )
        if self.target_probability is None and (self.max_guidance_scale, self.max_strength) != (None, None):
            raise ValueError("`max_guidance_scale` and `max_strength` bound a search: give `target_probability`.")
        if self.target_probability is not None and self.stop_probability is not None:
            raise ValueError(
                "`target_probability` searches the scale that suffices, `stop_probability` shortens a change to what "
                "suffices: give one of them."
            )
        if self.max_strength is not None and self.max_strength < self.strength:
            raise ValueError(
                f"`max_strength` must be at least {self.strength}, where the search begins, but got "
                f"{self.max_strength}."
            )

    @property
    def finds_region(self) -> bool:
        """Whether a first edit finds where the second may change the image."""
        return isinstance(self.mask, str) and self.mask == "auto"

    def to_dict(self) -> dict[str, Any]:
        """The options that are set, as plain values for JSON; `mask` is `"given"` where it is no word."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        values["mask"] = self.mask if isinstance(self.mask, str) else "given"
        return {name: value for name, value in values.items() if value is not None}

    def _at_a_strength(self, given: Mapping[str, Any], scheduler: Any) -> CounterfactualSettings:
        """With `start_snr` told as a strength."""
        if self.start_snr is None:
            return self
        if "strength" in given:
            raise ValueError("`strength` and `start_snr` both choose the noise level: give one of them.")
        return replace(self, strength=strength_of_snr(self.start_snr, scheduler), start_snr=None)

    def _completed(self, given: Mapping[str, Any], scheduler: Any) -> CounterfactualSettings:
        """With every option that depends on others settled, and checked."""
        steps = self.num_inference_steps if self.num_inversion_steps is None else self.num_inversion_steps
        has_paths = self.start == "noised_paths"
        eta = float(has_paths) if self.eta is None else self.eta
        settings = replace(
            self,
            num_inversion_steps=steps if self.start == "inversion" else 0,
            eta=eta,
            solver_order=1 if eta > 0 or has_paths else self.solver_order,
        )
        settings.check(scheduler)
        is_ddim = isinstance(scheduler, DDIMScheduler)
        needs_paths = {"`start='noised_paths'`": has_paths}
        needs = {
            "quality": needs_paths,
            "num_noises": needs_paths,
            "views": needs_paths,
            "follow_inversion": {
                "`start='inversion'`": self.start == "inversion",
                "a DDIMScheduler": is_ddim,
                "`num_inversion_steps` equal to `num_inference_steps`": steps == self.num_inference_steps,
            },
            "fade_guidance": {
                "a DDIMScheduler and `eta=0`, whose steps are known in advance": is_ddim and eta == 0,
                "`start='inversion'` or `start='noise'`": not has_paths,
            },
        }
        impossible: dict[str, Any] = {}
        for name, conditions in needs.items():
            missing = [need for need, is_met in conditions.items() if not is_met]
            if missing and given.get(name):
                raise ValueError(f"`{name}` needs {' and '.join(missing)}.")
            if missing:
                impossible[name] = False if isinstance(getattr(self, name), bool) else None
        return replace(settings, **impossible)


def timestep_of(strength: float, scheduler: Any) -> int:
    """The noise level of a strength, as a timestep in [1, num_train_timesteps)."""
    num_train_timesteps = scheduler.config.num_train_timesteps
    return min(max(round(strength * num_train_timesteps), 1), num_train_timesteps - 1)


def strength_of_snr(start_snr: float, scheduler: Any) -> float:
    """The strength whose noise level has this signal-to-noise ratio, abar_t / (1 - abar_t).

    Latents have unit variance after the autoencoder's `scaling_factor`, so that the ratio, unlike a timestep, means
    the same for other noise schedules.

    Raises:
        ValueError: if it is not above 0 or lies outside the schedule.
    """
    alphas = scheduler.alphas_cumprod.double().cpu()
    ratios = alphas / (1 - alphas)
    check_number("start_snr", start_snr)
    if not ratios[-1] <= start_snr <= ratios[1] or start_snr == 0:
        raise ValueError(
            f"`start_snr` must lie in [{float(ratios[-1]):.3g}, {float(ratios[1]):.3g}], what this noise schedule "
            f"offers, but got {start_snr}."
        )
    timestep = int((ratios.log() - math.log(start_snr)).abs().argmin())
    return timestep / scheduler.config.num_train_timesteps


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is not `None`, with numbers of Python instead of numpy's and torch's."""
    return {
        name: value if name == "mask" else plain_scale(value) for name, value in values.items() if value is not None
    }


def _checked(settings: CounterfactualSettings) -> CounterfactualSettings:
    """The settings, if each option by itself holds what its type says."""
    check_options(settings)
    values_of_scale(settings.guidance_scale)
    if settings.stop_probability is not None:
        values_of_scale(settings.stop_probability, "stop_probability")
    return settings
