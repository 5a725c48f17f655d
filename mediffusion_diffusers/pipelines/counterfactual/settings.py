"""Every option of a counterfactual, once: its type, range, default, help, and whether a checkpoint stores its own."""

from __future__ import annotations

import math
import textwrap
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.utils import logging

from ...guidance import OwnGuidanceMode, plain_scale, values_of_scale
from ...options import Range, check_number, check_options, option, range_of


logger = logging.get_logger(__name__)


class Stored:
    """In an option's type: a checkpoint may hold its own default of it, in its `guidance_defaults`."""


@dataclass(frozen=True, eq=False)
class CounterfactualSettings:
    """How a counterfactual is made.

    The pipeline's signature and docstring, [`~mediffusion_diffusers.explanation.request.ExplanationRequest`], the
    scripts' options and the model card's table all follow from the fields of this class. Where a type has several
    members, the first is what a command line takes.
    """

    strength: Annotated[float, Range(above=0, at_most=1), Stored] = option(
        0.3, "How far to go back in the noise schedule; t = strength * 1000 (paper: 0.05 to 0.3)."
    )
    guidance_scale: Annotated[float | Sequence[float] | Mapping[str, float], Range(at_least=0), Stored] = option(
        10.0,
        "Scale s of Eq. 2; a list gives one per counterfactual, so that several for one image make a sweep (Fig. 7); "
        '`{"towards": ..., "away": ...}` gives one per direction, of which the smaller holds for a counterfactual '
        "with both. It belongs to a checkpoint (the paper's 500 and 200 to its own).",
    )
    num_inference_steps: Annotated[int, Range(at_least=1), Stored] = option(
        10,
        "Guided steps actually taken from the start to the clean image, whatever the strength (unlike diffusers' "
        "image-to-image pipelines, which take `strength` times as many).",
    )
    start: Annotated[Literal["inversion", "noise"], Stored] = option(
        "inversion",
        '`"inversion"` climbs to the noise level by deterministic inversion, which keeps the image\'s identity; '
        '`"noise"` adds random noise, as the paper does.',
    )
    guidance_mode: Annotated[OwnGuidanceMode | Literal["external"], Stored] = option(
        "zt",
        'Where the classifier is asked: `"zt"`, `"x0_detached"`, `"x0"` (the paper\'s authors) or `"external"` '
        "(App. H); see [`~mediffusion_diffusers.guidance.predict_guided`].",
    )
    num_inversion_steps: Annotated[int | None, Range(at_least=0)] = option(
        None, "Steps of the inversion, by default `num_inference_steps`."
    )
    solver_order: Annotated[int, Range(at_least=1, at_most=2)] = option(
        2, "2 (Adams-Bashforth, few steps suffice) or 1 (plain DDIM); unused with other schedulers."
    )
    eta: Annotated[float, Range(at_least=0, at_most=1)] = option(
        0.0, 'Share of fresh noise of DDIM; above 0 it implies first order and needs `start="noise"`.'
    )
    start_snr: Annotated[float | None, Range(above=0)] = option(
        None,
        "The noise level by its signal-to-noise ratio instead of `strength`; it means the same for other noise "
        "schedules.",
    )
    follow_inversion: Annotated[bool, Stored] = option(
        False,
        "Keep to the inversion's own path on the way back and integrate the deviation alone. The null edit is then "
        "the encoded image itself and costs nothing, and fewer steps suffice. Needs DDIM and as many steps up as "
        "down.",
    )
    hold: Annotated[float, Range(at_least=0)] = option(
        0.0,
        "Weight of the penalty on changes of the logits that are not targeted; 0 lets them go. The penalty is "
        "multiplied by the scale, and stiff: begin with 0.3 / scale, and take more steps for more.",
    )
    target_probability: Annotated[float | None, Range(above=0, below=1)] = option(
        None,
        "Find for each image the smallest scale, then strength, that brings every label in `away` to this probability "
        "or below, and every label in `towards` to its complement or above (0.1 and 0.9 mean the same). "
        "`guidance_scale` and `strength` are where the search begins.",
    )
    max_guidance_scale: Annotated[float | None, Range(above=0)] = option(
        None, "Largest scale of the search, by default 32 times the first."
    )
    max_strength: Annotated[float | None, Range(above=0, at_most=1)] = option(
        None, "Largest strength of the search, by default `strength`: only the scale is searched."
    )
    mask: Annotated[Literal["auto", "everywhere"] | Any, Stored] = option(
        "everywhere",
        "Where the image may change: a mask, boxes, or one of them per counterfactual (see "
        '[`~mediffusion_diffusers.regions.prepare_region`]); `"auto"`: where an edit without a mask changes most; or '
        '`"everywhere"`. Outside, the latents stay those of the null edit, bit for bit.',
    )
    fade_guidance: Annotated[bool, Stored] = option(
        False,
        "Let the push fade within each step as the target becomes certain, instead of holding it as Eq. 2 does. Large "
        "scales then overshoot far less in few steps. Needs DDIM and `eta=0`; a scale calibrated without it is too "
        "small with it.",
    )

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
        try:
            _checked(cls(**stored))
        except ValueError as error:
            raise ValueError(f"The checkpoint's `guidance_defaults` cannot be used: {error}") from None
        settings = _checked(cls(**{**stored, **given}))
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
        if self.start == "inversion" and (isinstance(scheduler, DDPMScheduler) or self.eta > 0):
            raise ValueError(
                "`start='inversion'` needs deterministic steps, but the scheduler is DDPM or `eta` is above 0. Use "
                "`start='noise'`, or a DDIMScheduler with `eta=0`."
            )
        if scheduler.config.prediction_type == "epsilon" and scheduler.alphas_cumprod[max_timestep] == 0:
            raise ValueError(
                f"`strength={self.strength}` starts at pure noise (zero terminal SNR), where a predicted noise says "
                "nothing of the image. Choose a smaller `strength`, or a model that predicts v."
            )
        if self.target_probability is None and (self.max_guidance_scale, self.max_strength) != (None, None):
            raise ValueError("`max_guidance_scale` and `max_strength` bound a search: give `target_probability`.")
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
        settings = replace(
            self,
            num_inversion_steps=steps if self.start == "inversion" else 0,
            solver_order=1 if self.eta > 0 else self.solver_order,
        )
        settings.check(scheduler)
        is_ddim = isinstance(scheduler, DDIMScheduler)
        has_known_steps = is_ddim and self.eta == 0
        needs = {
            "follow_inversion": {
                "`start='inversion'`": self.start == "inversion",
                "a DDIMScheduler": is_ddim,
                "`num_inversion_steps` equal to `num_inference_steps`": steps == self.num_inference_steps,
            },
            "fade_guidance": {"a DDIMScheduler and `eta=0`, whose steps are known in advance": has_known_steps},
        }
        impossible: dict[str, Any] = {}
        for name, conditions in needs.items():
            missing = [need for need, is_met in conditions.items() if not is_met]
            if missing and given.get(name):
                raise ValueError(f"`{name}` needs {' and '.join(missing)}.")
            if missing:
                impossible[name] = False
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


def stored_options() -> tuple[str, ...]:
    """Names of the options that a checkpoint may store in its `guidance_defaults`."""
    hints = get_type_hints(CounterfactualSettings, include_extras=True)
    return tuple(name for name, hint in hints.items() if Stored in hint.__metadata__)


@dataclass(frozen=True)
class GivenOptions:
    """Some of the options, each given or `None`, which leaves it to the checkpoint; see `given_options`.

    Raises:
        ValueError: for an option outside its range.
    """

    option_names: ClassVar[tuple[str, ...]] = ()
    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_options(self)

    def given(self) -> dict[str, Any]:
        """The options that are given, as keyword arguments of the pipeline."""
        values = {name: getattr(self, self.prefix + name) for name in self.option_names}
        return {name: value for name, value in values.items() if value is not None}


def given_options(exclude: Collection[str] = (), only_stored: bool = False, prefix: str = "") -> Any:
    """Make a dataclass of the options as a command line takes them, for an `OptionParser` or to inherit from.

        Options = given_options(exclude=["guidance_mode"])
        job, options = OptionParser(Job, Options).parse()
        pipe(image, away="Mass", **options.given())

    Args:
        exclude: options that are left out.
        only_stored: only those that a checkpoint may store.
        prefix: of the fields' names, such as `counterfactual_`.

    Returns:
        A frozen subclass of `GivenOptions` whose fields are keyword-only and `None` by default.
    """
    hints = get_type_hints(CounterfactualSettings, include_extras=True)
    chosen = [
        entry
        for entry in fields(CounterfactualSettings)
        if entry.name not in exclude and (not only_stored or entry.name in stored_options())
    ]
    columns = []
    for entry in chosen:
        plain, *extras = get_args(hints[entry.name])
        member = get_args(plain)[0] if get_origin(plain) in (Union, types.UnionType) else plain
        ranges = [extra for extra in extras if isinstance(extra, Range)]
        hint = Annotated[(member | None, *ranges)] if ranges else member | None  # type: ignore[valid-type]
        columns.append((prefix + entry.name, hint, option(None, entry.metadata["help"])))
    namespace = {
        "option_names": tuple(entry.name for entry in chosen),
        "prefix": prefix,
        "_argument_group_name": "counterfactuals: what is not given is the checkpoint's",
    }
    return make_dataclass("Options", columns, bases=(GivenOptions,), namespace=namespace, frozen=True, kw_only=True)


def describe_options(indent: str) -> str:
    """Name and help of every option, as the lines of a docstring's `Args:`, the first without its indent."""
    lines = []
    for entry in fields(CounterfactualSettings):
        text = entry.metadata["help"]
        allowed = range_of(CounterfactualSettings, entry.name)
        text = f"{entry.name}: {text}" if allowed is None else f"{entry.name}: {text} A number {allowed}."
        lines.append(textwrap.fill(text, 119, initial_indent=indent, subsequent_indent=indent + "    "))
    return "\n".join(lines).lstrip()


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is not `None`, with numbers of Python instead of numpy's and torch's."""
    return {
        name: value if name == "mask" else plain_scale(value) for name, value in values.items() if value is not None
    }


def _checked(settings: CounterfactualSettings) -> CounterfactualSettings:
    """The settings, if each option by itself holds what its type says."""
    check_options(settings)
    values_of_scale(settings.guidance_scale)
    return settings
