"""The smallest guidance scale that reaches a goal, for many images at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..guidance import ExternalClassifier
from .base import Generators, clone_generator
from .counterfactual_results import CounterfactualResultsMixin, EditResult
from .counterfactual_sampling import EditRows, Route, Start


@dataclass(frozen=True)
class SearchBounds:
    """Where a search for the smallest edit begins and ends.

    Args:
        guidance_scale: first scale to try.
        max_guidance_scale: largest scale to try.
        strength: first strength.
        max_strength: largest strength.
    """

    guidance_scale: float
    max_guidance_scale: float
    strength: float
    max_strength: float


class ScaleSearch:
    """Find per row the smallest scale that reaches a goal: doubling or halving, then bisection on a log scale.

    Rows are independent of one another, and leave the search one by one. It assumes that a larger scale reaches
    whatever a smaller one does, which guidance obeys up to its artefacts; what is returned was reached in any case.

        search = ScaleSearch(num_rows, initial_scale=10.0, max_scale=320.0)
        while len(search.active):
            rows, scales = search.active, search.scales
            search.update(try_scales(rows, scales))

    Args:
        num_rows: how many rows.
        initial_scale: first scale to try, above 0.
        max_scale: largest scale to try.
        min_scale: smallest; a row that is reached here is done.
        tolerance: the answer is at most so many times the smallest scale; above 1.
    """

    def __init__(
        self,
        num_rows: int,
        initial_scale: float,
        max_scale: float,
        min_scale: float | None = None,
        tolerance: float = 1.25,
    ):
        self.max_scale, self.tolerance = max_scale, tolerance
        self.min_scale = initial_scale / 64 if min_scale is None else min_scale
        self.low = torch.zeros(num_rows)  # largest scale that failed
        self.high = torch.full((num_rows,), torch.inf)  # smallest that reached
        self._next = torch.full((num_rows,), float(min(initial_scale, max_scale)))

    @property
    def reached(self) -> torch.Tensor:
        """Which rows have reached their goal so far, shape `(num_rows,)`."""
        return self.high.isfinite()

    @property
    def active(self) -> torch.Tensor:
        """Indices of the rows that are still being searched."""
        close = self.high <= self.tolerance * self.low
        done = close | (self.high <= self.min_scale) | (self.low >= self.max_scale)
        return torch.nonzero(~done).flatten()

    def accept_without(self, reached: torch.Tensor) -> None:
        """Take rows out of the search that reached their goal without guidance.

        Args:
            reached: bool, shape `(num_rows,)`.
        """
        self.high[reached] = 0.0

    @property
    def solved(self) -> torch.Tensor:
        """Indices of the rows that reached their goal and are no longer searched."""
        is_active = torch.zeros_like(self.reached)
        is_active[self.active] = True
        return torch.nonzero(self.reached & ~is_active).flatten()

    @property
    def scales(self) -> torch.Tensor:
        """The next scale of each active row."""
        return self._next[self.active]

    def update(self, reached: torch.Tensor) -> None:
        """Take in whether each active row reached its goal at its scale.

        Args:
            reached: bool, shape of `active`.
        """
        rows, tried = self.active, self.scales
        self.high[rows] = torch.where(reached, tried, self.high[rows])
        self.low[rows] = torch.where(reached, self.low[rows], tried)
        low, high = self.low, self.high
        doubled = (2 * low).clamp(max=self.max_scale)
        halved = (high / 2).clamp(min=self.min_scale)
        self._next = torch.where(high.isinf(), doubled, torch.where(low == 0, halved, (low * high).sqrt()))


def strength_ladder(strength: float, max_strength: float, factor: float = 1.4) -> list[float]:
    """Strengths to try one after another: the given one, then each `factor` times the last, up to the largest."""
    ladder = [strength]
    while ladder[-1] < max_strength:
        ladder.append(min(ladder[-1] * factor, max_strength))
    return ladder


def goal_probability(target_probability: float) -> float:
    """How far a label may stay from certainty: 0.1 and 0.9 both mean at most 0.1 away and at least 0.9 towards."""
    return min(target_probability, 1 - target_probability)


def has_reached(probabilities: torch.Tensor, direction: torch.Tensor, target_probability: float) -> torch.Tensor:
    """Whether every targeted label of a row is where it should be.

    Args:
        probabilities: shape `(rows, num_labels)`.
        direction: +1 towards, -1 away, 0 not targeted; same shape.
        target_probability: in (0, 1), see `goal_probability`.

    Returns:
        Bool, shape `(rows,)`.
    """
    margin = goal_probability(target_probability)
    direction = direction.to(probabilities)
    missing = torch.where(direction > 0, 1 - probabilities, probabilities)
    return ((missing <= margin) | (direction == 0)).all(1)


class GuidanceSearchMixin(CounterfactualResultsMixin):
    """The search of [`MediffusionCounterfactualPipeline`] for the smallest edit that reaches a goal."""

    def _search(
        self: Any,
        go: Callable[[Route, torch.Tensor], Start],
        rows: EditRows,
        route: Route,
        bounds: SearchBounds,
        target_probability: float,
        generators: Generators,
        output_type: str,
        external: ExternalClassifier | None,
    ) -> EditResult:
        """Search scales at each strength in turn; rows that reached their goal leave.

        Only the search ends early, never the denoising: stopped at the crossing, an edit is adversarial.

        Args:
            go: takes some images to a noise level.
            rows: the counterfactuals to make.
            route: of the first strength.
            bounds: where the search begins and ends.
            target_probability: see `has_reached`.
            generators: a list of one per image, for step noise, or None.
            output_type: pictures are judged as the user gets them.
            external: the classifier that guides, if it is not the model's own.
        """
        device = rows.image_index.device
        latents: list[torch.Tensor | None] = [None] * len(rows)
        scales, strengths = torch.zeros(len(rows)), torch.zeros(len(rows))
        reached = torch.zeros(len(rows), dtype=torch.bool)
        null_latents: list[torch.Tensor] = []
        null_index = torch.zeros(len(rows), dtype=torch.long)
        self._is_quiet = True
        try:
            with self.progress_bar(total=len(rows)) as bar:
                for strength in strength_ladder(bounds.strength, bounds.max_strength):
                    pending = torch.nonzero(~reached).flatten()
                    if not len(pending):
                        break
                    # 1. Only the images of unsolved rows go to the next noise level
                    images, local = rows.image_index[pending.to(device)].unique(return_inverse=True)
                    at_level = replace(route, max_timestep=self._timestep_of(strength))
                    start = go(at_level, images)
                    part = replace(rows.select(pending.to(device)), image_index=local)
                    own = [generators[image] for image in images.tolist()] if isinstance(generators, list) else None
                    null_index[pending] = local.cpu() + sum(len(null) for null in null_latents)
                    strengths[pending] = strength
                    search = ScaleSearch(len(pending), bounds.guidance_scale, bounds.max_guidance_scale)

                    # 2. The null edit may do already; then scales, until no row is left
                    is_first = True
                    while is_first or len(search.active):
                        active = torch.arange(len(pending)) if is_first else search.active
                        tried = torch.zeros(len(pending)) if is_first else search.scales
                        self._guidance_scale = tried.to(start.latents)
                        step_noise = None if own is None else [clone_generator(generator) for generator in own]
                        edited, null = self._edit(start, part.select(active.to(device)), at_level, step_noise, None)
                        scores = self._goal_scores(*self._show(edited, output_type), external).cpu()
                        done = has_reached(scores, part.target.direction[active], target_probability)
                        if is_first:
                            null_latents.append(null)
                            search.accept_without(done)
                        else:
                            search.update(done)
                        for place, row in enumerate(pending[active].tolist()):
                            if done[place] or not reached[row]:
                                latents[row], scales[row] = edited[place], tried[place]
                                reached[row] |= done[place]
                        is_first = False
                        solved = len(rows) - len(pending) + len(search.solved)
                        bar.update(solved - bar.n)
        finally:
            self._is_quiet = False
        return EditResult(
            torch.stack(latents),  # type: ignore[arg-type]
            torch.cat(null_latents),
            null_index.to(device),
            scales,
            strengths,
            reached,
        )
