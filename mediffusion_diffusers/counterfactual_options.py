"""Every option of a counterfactual, once: its type, range, default, help, and whether a checkpoint stores its own.

Nothing heavy is imported here, so that a command line can show the options at once;
[`~mediffusion_diffusers.pipelines.counterfactual.CounterfactualSettings`] settles them for a call.
"""

from __future__ import annotations

import textwrap
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from .choices import OwnGuidanceMode
from .options import Range, check_options, option, range_of


class Stored:
    """In an option's type: a checkpoint may hold its own default of it, in its `guidance_defaults`."""


@dataclass(frozen=True, eq=False)
class CounterfactualOptions:
    """How a counterfactual is made, as it is asked for.

    The pipeline's signature and docstring, [`~mediffusion_diffusers.requests.counterfactuals.ExplanationRequest`], the
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
    start: Annotated[Literal["inversion", "noise", "noised_paths"], Stored] = option(
        "inversion",
        '`"inversion"` climbs to the noise level by deterministic inversion, which keeps the image\'s identity; '
        '`"noise"` adds random noise, as the paper does; `"noised_paths"` noises the image afresh at every step, '
        "`num_noises` times, and averages by how much guidance deviates from that: closest to the truth, and without "
        "guidance the image itself.",
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
    eta: Annotated[float | None, Range(at_least=0, at_most=1)] = option(
        None,
        'Share of fresh noise of DDIM, by default 1 with `start="noised_paths"` and else 0; above 0 it implies first '
        "order and needs one of the starts with noise.",
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
    stop_probability: Annotated[float | Mapping[str, float] | None, Range(above=0, below=1), Stored] = option(
        None,
        "How far a change goes: it is shortened to the share of it that brings every label in `away` to this "
        "probability or below, and every label in `towards` to its complement or above; one that does not get there "
        'stays whole. `{"towards": ..., "away": ...}` gives one per direction, as it is; one that is missing does not '
        "stop. A checkpoint's gives way to a call's `guidance_scale` or `target_probability`.",
    )
    mask: Annotated[Literal["auto", "everywhere"] | Any, Stored] = option(
        "everywhere",
        "Where the image may change: a mask, boxes, or one of them per counterfactual (see "
        '[`~mediffusion_diffusers.regions.prepare_region`]); `"auto"`: where an edit without a mask changes most (the '
        "smallest region with half of its energy; with noised paths where it convinces the classifier, the smallest "
        "with 0.6 of the integrated gradients for the target, of which the strongest connected part if one finding is "
        'added, and what lies around it); or `"everywhere"`. '
        'Outside, the latents stay those of the null edit, bit for bit; and with `detail="keep"` the image itself '
        "stays outside a given mask.",
    )
    fade_guidance: Annotated[bool, Stored] = option(
        False,
        "Let the push fade within each step as the target becomes certain, instead of holding it as Eq. 2 does. Large "
        "scales then overshoot far less in few steps. Needs DDIM and `eta=0`; a scale calibrated without it is too "
        "small with it.",
    )
    quality: Annotated[Literal["fast", "best"] | None, Stored] = option(
        None,
        'One word for `start="noised_paths"`, its `num_noises` and its `num_inference_steps`: `"fast"` takes 24 '
        'evaluations of the U-Net, `"best"` 78. Options that are named themselves come first.',
    )
    num_noises: Annotated[int | None, Range(at_least=1, at_most=1000), Stored] = option(
        4, 'With `start="noised_paths"`: noised copies per step, in pairs of a noise and its opposite.'
    )
    views: Annotated[Literal["shifts", "shifts_and_flips", "none"] | None, Stored] = option(
        "shifts",
        'With `start="noised_paths"`: how each copy is shown to the model, shifted by up to a latent position, and '
        "mirrored where anatomy allows (not a chest: it moves the heart); deviations are averaged in the image's own "
        "place.",
    )
    detail: Annotated[Literal["keep", "decoded"], Stored] = option(
        "keep",
        '`"keep"` adds what guidance changed to the image itself, so that the autoencoder and the noise change '
        'nothing and the null edit is the image; `"decoded"` shows the decoded latents, as the paper does.',
    )


def stored_options() -> tuple[str, ...]:
    """Names of the options that a checkpoint may store in its `guidance_defaults`."""
    hints = get_type_hints(CounterfactualOptions, include_extras=True)
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
    hints = get_type_hints(CounterfactualOptions, include_extras=True)
    chosen = [
        entry
        for entry in fields(CounterfactualOptions)
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
    for entry in fields(CounterfactualOptions):
        text = entry.metadata["help"]
        allowed = range_of(CounterfactualOptions, entry.name)
        text = f"{entry.name}: {text}" if allowed is None else f"{entry.name}: {text} A number {allowed}."
        lines.append(textwrap.fill(text, 119, initial_indent=indent, subsequent_indent=indent + "    "))
    return "\n".join(lines).lstrip()
