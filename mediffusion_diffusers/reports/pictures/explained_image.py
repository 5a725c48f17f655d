"""One explained image: what its pictures are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...controls import high_frequency_share
from .drawing import difference_limit, grey


_TOLERANCE = 1e-3  # by which rounding may leave [0, 1]
_BOX_KEYS = ("x", "y", "width", "height")


@dataclass(frozen=True, eq=False)
class ScoredImage:
    """An image, and how probable the target finding is in it.

    Args:
        image: shape `(channels, height, width)` or `(height, width)`, grey or RGB, in [0, 1]; kept with its channels.
        probability: the explained model's, in [0, 1].
        oracle_probability: the outside classifier's, if there is one.

    Raises:
        ValueError: for another shape, or for values outside [0, 1].
    """

    image: np.ndarray
    probability: float
    oracle_probability: float | None = None

    def __post_init__(self) -> None:
        image = np.asarray(self.image, dtype=np.float64)
        image = image[None] if image.ndim == 2 else image
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ValueError(
                "`image` must have shape (height, width) or (channels, height, width) with 1 or 3 channels, but got "
                f"{np.shape(self.image)}."
            )
        if not (image.min() >= -_TOLERANCE and image.max() <= 1 + _TOLERANCE):  # NaN is neither
            raise ValueError(
                f"`image` must lie in [0, 1], but its values span [{image.min():.3g}, {image.max():.3g}]. Rescale it, "
                "for example `(image + 1) / 2` from [-1, 1], or `image / 255`."
            )
        for name in ("probability", "oracle_probability"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], but got {value}.")
        object.__setattr__(self, "image", image)


@dataclass(frozen=True, eq=False)
class GuidanceSweep:
    """The same start at growing guidance scales (Fig. 7).

    Args:
        scales: guidance scales, ascending, at least two.
        stops: the image at each scale.

    Raises:
        ValueError: if scales and images do not fit together.
    """

    scales: Sequence[float]
    stops: Sequence[ScoredImage]

    def __post_init__(self) -> None:
        if len(self.scales) != len(self.stops) or len(self.scales) < 2:
            raise ValueError(
                "`scales` and `stops` must be equally many, at least two, but got "
                f"{len(self.scales)} and {len(self.stops)}."
            )
        if list(self.scales) != sorted(self.scales):
            raise ValueError(f"`scales` must ascend, but got {list(self.scales)}. Sort them together with `stops`.")
        shapes = {stop.image.shape for stop in self.stops}
        if len(shapes) > 1:
            raise ValueError(f"The images of `stops` must have one shape, but got {sorted(shapes)}.")

    def differences(self, original: np.ndarray) -> list[np.ndarray]:
        """Signed differences of the images to an original, each `(height, width)`: channels averaged, in [-1, 1].

        Raises:
            ValueError: if the original has another height and width.
        """
        size = self.stops[0].image.shape[-2:]
        if np.shape(original)[-2:] != size:
            raise ValueError(
                f"`original` must have the height and width of the sweep's images, {size}, but got "
                f"{np.shape(original)[-2:]}."
            )
        return [grey(stop.image) - grey(original) for stop in self.stops]


@dataclass(frozen=True, eq=False)
class ExplainedImage:
    """An image, its counterfactual and the controls that stand beside it.

    Args:
        label: the target finding, e.g. `"Mass"`.
        action: what was done to it, `"removed"` or `"added"`.
        original: x.
        counterfactual: x'.
        null_edit: x0, from the same start and steps without guidance.
        plain_gradient: the model's gradient followed without any diffusion, at the counterfactual's L1.
        random_noise: white noise, at the counterfactual's L1.
        name: what to call the image; it is printed, so it must not identify a person.
        boxes: `{"x", "y", "width", "height"}` of the finding, in relative units, if known.
        region: where the edit was allowed, shape `(height, width)`, true or above 0.5 inside; None for everywhere.
        sweep: the counterfactual at several guidance scales.

    Raises:
        ValueError: if shapes do not fit together, or a box lacks a side.
    """

    label: str
    action: str
    original: ScoredImage
    counterfactual: ScoredImage
    null_edit: ScoredImage | None = None
    plain_gradient: ScoredImage | None = None
    random_noise: ScoredImage | None = None
    name: str = ""
    boxes: Sequence[Mapping[str, float]] = field(default_factory=tuple)
    region: np.ndarray | None = None
    sweep: GuidanceSweep | None = None

    def __post_init__(self) -> None:
        shape = self.original.image.shape
        others = dict(self.changed())
        if self.sweep is not None:
            others["sweep"] = self.sweep.stops[0]
        for name, other in others.items():
            if other.image.shape != shape:
                raise ValueError(
                    f"All images must have the original's shape {shape}, but {name} has {other.image.shape}."
                )
        if self.region is not None and np.shape(self.region) != shape[1:]:
            raise ValueError(f"`region` must have shape {shape[1:]}, but got {np.shape(self.region)}.")
        for box in self.boxes:
            if not set(_BOX_KEYS) <= set(box):
                raise ValueError(f"Each of `boxes` must hold {', '.join(_BOX_KEYS)}, but got {dict(box)}.")

    @property
    def heading(self) -> str:
        """What was done, e.g. `"Mass removed"`."""
        return f"{self.label} {self.action}"

    def changed(self) -> list[tuple[str, ScoredImage]]:
        """The counterfactual and those controls that there are, by the names they have in pictures."""
        named = [
            ("Counterfactual", self.counterfactual),
            ("Null edit", self.null_edit),
            ("Plain gradient", self.plain_gradient),
            ("Random noise", self.random_noise),
        ]
        return [(name, image) for name, image in named if image is not None]

    def difference(self, changed: ScoredImage) -> np.ndarray:
        """Signed difference to the original, shape `(height, width)`: channels averaged, in [-1, 1]."""
        return grey(changed.image - self.original.image)

    def limit(self) -> float:
        """End of the one symmetric scale for the counterfactual's and the controls' differences."""
        return difference_limit([self.difference(image) for _, image in self.changed()])

    def change_size(self, changed: ScoredImage) -> float:
        """L1: mean absolute change of a pixel and channel, as a share of the intensity range."""
        return float(np.abs(changed.image - self.original.image).mean())

    def high_frequency(self, changed: ScoredImage) -> float:
        """Share of the change's energy above half of the highest frequency (white noise: 0.80); NaN for no change."""
        return float(high_frequency_share((changed.image - self.original.image)[None])[0])
