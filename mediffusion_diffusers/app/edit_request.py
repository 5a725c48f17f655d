"""What is asked on the page: which findings to remove or add, how firmly, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..guidance import scale_for
from ..options import Range, check_number
from ..pipelines import MediffusionCounterfactualPipeline


HOLD_AT_SCALE_ONE = 0.3  # the penalty is multiplied by the scale, and stiff: see `CounterfactualSettings.hold`
Push = Literal["checkpoint", "target", "by_hand"]
Care = Literal["checkpoint", "fast", "best"]
Place = Literal["checkpoint", "auto", "everywhere", "box"]


@dataclass(frozen=True)
class EditRequest:
    """One question to the model.

    Args:
        remove: findings to remove.
        add: findings to add.
        push: as the checkpoint recommends; as far as `target_probability` needs; or `guidance_scale` and `strength`.
        target_probability: of a search, in (0, 1).
        guidance_scale: by hand, at least 0.
        strength: by hand, in (0, 1].
        care: as the checkpoint recommends, or one of the two qualities of noised paths.
        place: where the image may change: as the checkpoint recommends, where the model itself changes most,
            everywhere, or in `box`.
        box: `{"x", "y", "width", "height"}` in relative units.
        hold_others: whether the other findings are held where they are.

    Raises:
        ValueError: for no finding, one to remove and to add, or a number outside its range.
    """

    remove: tuple[str, ...] = ()
    add: tuple[str, ...] = ()
    push: Push = "checkpoint"
    target_probability: float = 0.1
    guidance_scale: float | None = None
    strength: float | None = None
    care: Care = "checkpoint"
    place: Place = "checkpoint"
    box: Mapping[str, float] | None = None
    hold_others: bool = False

    def __post_init__(self) -> None:
        if not (self.remove or self.add):
            raise ValueError("Choose at least one finding to remove or to add.")
        both = sorted(set(self.remove) & set(self.add))
        if both:
            raise ValueError(f"A finding can be removed or added, but {both[0]} is chosen for both. Choose one.")
        if self.push == "target":
            check_number("target_probability", self.target_probability, Range(above=0, below=1))
        if self.push == "by_hand":
            check_number("guidance_scale", self.guidance_scale, Range(at_least=0))
            check_number("strength", self.strength, Range(above=0, at_most=1))

    @property
    def targets(self) -> list[tuple[str, str]]:
        """Each finding with what is done to it, `"removed"` or `"added"`."""
        return [(label, "removed") for label in self.remove] + [(label, "added") for label in self.add]

    @property
    def labels(self) -> dict[str, list[str]]:
        """`towards` and `away` of the pipeline's call, as far as they are asked for."""
        named = {"towards": list(self.add), "away": list(self.remove)}
        return {name: labels for name, labels in named.items() if labels}

    def arguments(self, pipe: MediffusionCounterfactualPipeline) -> dict[str, Any]:
        """The pipeline's arguments for one image.

        Args:
            pipe: whose checkpoint recommends what is not asked for.

        Raises:
            ValueError: if the checkpoint holds no scale for what is asked.
        """
        options: dict[str, Any] = {}
        if self.push == "target":
            options["target_probability"] = self.target_probability
        if self.push == "by_hand":
            options |= {"guidance_scale": self.guidance_scale, "strength": self.strength}
        if self.care != "checkpoint":
            options["quality"] = self.care
        if self.place == "box":
            options["mask"] = [dict(self.box or {})]
        elif self.place != "checkpoint":
            options["mask"] = self.place
        if self.hold_others:
            scale = recommended_scale(pipe, self.labels) if self.guidance_scale is None else self.guidance_scale
            options["hold"] = HOLD_AT_SCALE_ONE / max(scale, 1e-6)
        return {**self.labels, **options}


def recommended_scale(pipe: MediffusionCounterfactualPipeline, labels: Mapping[str, Any]) -> float:
    """The guidance scale that the checkpoint recommends.

    Args:
        pipe: of the checkpoint.
        labels: with the directions that are asked for, `towards` and `away`, as keys.

    Raises:
        ValueError: if it holds no scale for one of them.
    """
    return float(scale_for(pipe.resolve_settings().guidance_scale, list(labels)))  # type: ignore[arg-type]
