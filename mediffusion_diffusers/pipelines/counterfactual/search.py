"""The smallest guidance scale that reaches a goal, for many counterfactuals at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..base import Generators, clone_generator
from .editor import Edit, Editor, Watch
from .question import Question
from .settings import CounterfactualSettings
from .start import Start, Way


class ScaleSearch:
    """Find per row the smallest scale that reaches a goal: doubling or halving, then bisection on a log scale.

    Rows are independent of one another, and leave the search one by one. It assumes that a larger scale reaches
    whatever a smaller one does, which guidance obeys up to its artefacts; what is returned was reached in any case.

        search = ScaleSearch(torch.tensor([10.0, 30.0]), torch.tensor([320.0, 960.0]))
        while len(search.active):
            rows, scales = search.active, search.scales
            search.update(try_scales(rows, scales))

    Args:
        initial_scales: first scale of each row, above 0, shape `(num_rows,)`.
        max_scales: largest scale of each row, same shape.
        tolerance: the answer is at most so many times the smallest scale; above 1.
        range_below: a row that is reached at the first scale divided by this is done.
    """

    def __init__(
        self,
        initial_scales: torch.Tensor,
        max_scales: torch.Tensor,
        tolerance: float = 1.25,
        range_below: float = 64.0,
    ):
        self.max_scales, self.min_scales, self.tolerance = max_scales, initial_scales / range_below, tolerance
        self.low = torch.zeros_like(max_scales)  # largest scale that failed
        self.high = torch.full_like(max_scales, torch.inf)  # smallest that reached
        self._next = torch.minimum(initial_scales, max_scales)

    @property
    def reached(self) -> torch.Tensor:
        """Which rows have reached their goal so far, shape `(num_rows,)`."""
        return self.high.isfinite()

    @property
    def active(self) -> torch.Tensor:
        """Indices of the rows that are still being searched."""
        is_close = self.high <= self.tolerance * self.low
        is_done = is_close | (self.high <= self.min_scales) | (self.low >= self.max_scales)
        return torch.nonzero(~is_done).flatten()

    @property
    def num_solved(self) -> int:
        """How many rows reached their goal and are no longer searched."""
        is_solved = self.reached.clone()
        is_solved[self.active] = False
        return int(is_solved.sum())

    @property
    def scales(self) -> torch.Tensor:
        """The next scale of each active row."""
        return self._next[self.active]

    def accept_without(self, reached: torch.Tensor) -> None:
        """Take rows out of the search that reached their goal without guidance.

        Args:
            reached: bool, shape `(num_rows,)`.
        """
        self.high[reached] = 0.0

    def update(self, reached: torch.Tensor) -> None:
        """Take in whether each active row reached its goal at its scale.

        Args:
            reached: bool, shape of `active`.
        """
        rows, tried = self.active, self.scales
        self.high[rows] = torch.where(reached, tried, self.high[rows])
        self.low[rows] = torch.where(reached, self.low[rows], tried)
        low, high = self.low, self.high
        doubled = torch.minimum(2 * low, self.max_scales)
        halved = torch.maximum(high / 2, self.min_scales)
        self._next = torch.where(high.isinf(), doubled, torch.where(low == 0, halved, (low * high).sqrt()))


class SmallestEdit:
    """An editor that searches scales at each strength in turn; rows that reached their goal leave.

    Only the search ends early, never the denoising: stopped at the crossing, an edit is adversarial.

    Args:
        editor: makes each trial.
        way: to higher noise levels.
        settings: with `target_probability`.
        judge: probabilities of an edit as the user gets to see it, shape `(rows, num_labels)`; takes the image of each
            row too.
        progress_bar: of the pipeline.
    """

    def __init__(
        self,
        editor: Editor,
        way: Way,
        settings: CounterfactualSettings,
        judge: Callable[[Edit, torch.Tensor], torch.Tensor],
        progress_bar: Callable[..., Any],
    ):
        assert settings.target_probability is not None
        self.editor, self.way, self.settings, self.judge = editor, way, settings, judge
        self.goal, self.progress_bar = settings.target_probability, progress_bar

    def edit(self, start: Start, question: Question, generator: Generators, watch: Watch) -> Edit:
        """As for an `Editor`; the question's scales are where the search begins.

        Args:
            start: at the first strength, for all images.
            question: the rows.
            generator: a list of one per image, for step noise, or None.
            watch: of the call; trials are neither shown nor called back for.
        """
        found = FoundEdits(len(question))
        largest = self.settings.max_guidance_scale
        with self.progress_bar(total=len(question)) as bar:
            for strength in strength_ladder(self.settings.strength, self.settings.max_strength):
                pending = torch.nonzero(~found.reached).flatten()
                if not len(pending):
                    break
                # 1. Only the images of unsolved rows go to the next noise level
                images, local = question.image_index[pending].unique(return_inverse=True)
                if strength > start.strength:
                    start = self.way.begin(images, strength, iter)
                part = replace(question.select(pending), image_index=local)
                own = [generator[image] for image in images.tolist()] if isinstance(generator, list) else None

                # 2. The null edit may do already; then scales, until no row is left
                initial = part.scales.float()
                search = ScaleSearch(initial, 32 * initial if largest is None else torch.full_like(initial, largest))
                rows, scales = torch.arange(len(part)), torch.zeros(len(part))
                while len(rows):
                    asked = part.select(rows).at_scales(scales)
                    trial = self.editor.edit(start, asked, clone_generator(own), watch.silent())
                    probabilities = self.judge(trial, images[asked.image_index]).cpu()
                    reached = has_reached(probabilities, asked.target.direction, self.goal)
                    found.take(pending[rows], trial, reached, probabilities.isfinite().all(1))
                    search.update(reached) if scales.any() else search.accept_without(reached)
                    rows, scales = search.active, search.scales
                    bar.update(len(question) - len(pending) + search.num_solved - bar.n)
                found.null_latents.append(trial.null_latents)
        return found.edit(question.region)


class FoundEdits:
    """The best trial of each row: the last that reached the goal, else the last that gave numbers at all.

    Args:
        num_rows: how many rows.
    """

    def __init__(self, num_rows: int):
        self.latents: list[Any] = [None] * num_rows
        self.regions: list[Any] = [None] * num_rows
        self.agreements: list[Any] = [None] * num_rows
        self.scales, self.strengths = torch.zeros(num_rows), torch.zeros(num_rows)
        self.reached = torch.zeros(num_rows, dtype=torch.bool)
        self.null_index = torch.zeros(num_rows, dtype=torch.long)
        self.null_latents: list[torch.Tensor] = []  # of each strength

    def take(self, rows: torch.Tensor, trial: Edit, reached: torch.Tensor, is_finite: torch.Tensor) -> None:
        """Take in a trial.

        Args:
            rows: which rows it was about.
            trial: at the strength whose null edits come next.
            reached: which of them reached their goal.
            is_finite: which of them have probabilities.
        """
        num_nulls = sum(len(null_latents) for null_latents in self.null_latents)
        for place, row in enumerate(rows.tolist()):
            is_first = self.latents[row] is None
            if not (is_first or reached[place] or (is_finite[place] and not self.reached[row])):
                continue
            self.latents[row] = trial.latents[place]
            if trial.region is not None and len(trial.region) == len(rows):
                self.regions[row] = trial.region[place]
            if trial.agreement is not None:
                self.agreements[row] = trial.agreement[place]
            self.scales[row], self.strengths[row] = trial.guidance_scales[place], trial.strengths[place]
            self.null_index[row] = num_nulls + trial.null_index[place]
            self.reached[row] |= reached[place]

    def edit(self, region: torch.Tensor | None) -> Edit:
        """All rows together.

        Args:
            region: that the question was asked within; None for those that the trials found, if any.
        """
        return Edit(
            torch.stack(self.latents),
            torch.cat(self.null_latents),
            self.null_index,
            self.scales,
            self.strengths,
            self.reached,
            _stacked(self.regions) if region is None else region,
            _stacked(self.agreements),
        )


def _stacked(rows: list[Any]) -> torch.Tensor | None:
    return None if any(row is None for row in rows) else torch.stack(rows)


def strength_ladder(strength: float, max_strength: float | None, factor: float = 1.4) -> list[float]:
    """Strengths to try one after another: the given one, then each `factor` times the last, up to the largest."""
    ladder = [strength]
    while max_strength is not None and ladder[-1] < max_strength:
        ladder.append(min(ladder[-1] * factor, max_strength))
    return ladder


def goal_probability(target_probability: float) -> float:
    """How far a label may stay from certainty: 0.1 and 0.9 both mean at most 0.1 away and at least 0.9 towards."""
    return min(target_probability, 1 - target_probability)


def has_reached(probabilities: torch.Tensor, direction: torch.Tensor, target_probability: float) -> torch.Tensor:
    """Whether every targeted label of a row is where it should be; never where a probability is NaN.

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


def check_first_scales(scales: torch.Tensor, settings: CounterfactualSettings) -> None:
    """Refuse scales that a search cannot begin with.

    Args:
        scales: of each row.
        settings: with `target_probability`.

    Raises:
        ValueError: naming the option.
    """
    if not (scales > 0).all() or (isinstance(settings.guidance_scale, (list, tuple)) and len(scales.unique()) > 1):
        raise ValueError(
            "With `target_probability`, `guidance_scale` is the first scale to try: above 0, and no list."
        )
    first, largest = float(scales.max()), settings.max_guidance_scale
    if largest is not None and largest < first:
        raise ValueError(f"`max_guidance_scale` must be at least {first}, where the search begins, but got {largest}.")
