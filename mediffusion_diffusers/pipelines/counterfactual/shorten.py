"""A change goes no further than it has to: guidance pushes on, and takes nothing back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ...guidance import SCALE_NAMES
from ..base import Generators
from .editor import Edit, Editor, Watch
from .question import Question
from .search import goal_probability
from .start import Start


StopProbability = float | Mapping[str, float]
_NUM_HALVINGS = 4  # so that a change is at most a sixteenth of itself longer than it has to be


class ShortenedEdit:
    """An editor whose changes are shortened to the share that suffices; one that does not suffice stays whole.

    While the classifier is in doubt about noised latents it pushes, whatever has been reached already; so what is
    removed easily is overdone at the scale that stubborn findings need.

    Args:
        editor: makes the edit.
        guided: the editor whose classifier is asked.
        problem_type: of that classifier.
        stop_probability: see `CounterfactualOptions`.
    """

    def __init__(self, editor: Any, guided: Editor, problem_type: str, stop_probability: StopProbability):
        self.editor, self.guided, self.problem_type, self.stop = editor, guided, problem_type, stop_probability

    def edit(self, start: Start, question: Question, generator: Generators, watch: Watch) -> Edit:
        """As for an `Editor`."""
        edit = self.editor.edit(start, question, generator, watch)
        goals = goals_of(self.stop, question.target.direction).to(edit.latents.device)
        if goals.isnan().all():
            return edit
        direction, null_latents = question.target.direction.to(goals), edit.null_latents[edit.null_index]
        change = edit.latents.float() - null_latents.float()
        too_short = torch.zeros(len(question), 1, 1, 1, device=goals.device)
        enough = torch.ones_like(too_short)
        for _ in range(_NUM_HALVINGS):
            share = (too_short + enough) / 2
            probabilities = self._probabilities((null_latents.float() + share * change).to(null_latents.dtype))
            suffices = have_reached(probabilities, direction, goals).view_as(share)
            too_short, enough = torch.where(suffices, too_short, share), torch.where(suffices, share, enough)
        shortened = (null_latents.float() + enough * change).to(null_latents.dtype)
        return replace(edit, latents=torch.where(enough < 1, shortened, edit.latents))

    def _probabilities(self, latents: torch.Tensor) -> torch.Tensor:
        """Of clean latents, shape `(rows, num_labels)`, float32."""
        logits = self.guided.classify(latents).float()
        return logits.softmax(-1) if self.problem_type == "single_label_classification" else logits.sigmoid()


def goals_of(stop_probability: StopProbability, direction: torch.Tensor) -> torch.Tensor:
    """The probability at which each label is where it should be.

    Args:
        stop_probability: one number, 0.1 and 0.9 meaning the same, or one per direction, as it is.
        direction: +1 towards, -1 away, 0 not targeted, shape `(rows, num_labels)`.

    Returns:
        Shape of `direction`, float32; NaN for labels without a goal.
    """
    if not isinstance(stop_probability, Mapping):
        margin = goal_probability(stop_probability)
        stop_probability = {"towards": 1 - margin, "away": margin}
    goals = torch.full(direction.shape, torch.nan)
    for name, sign in zip(SCALE_NAMES, (1, -1), strict=True):
        goals[direction == sign] = stop_probability.get(name, torch.nan)
    return goals


def have_reached(probabilities: torch.Tensor, direction: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
    """Whether every targeted label of a row is at its goal or beyond; never where one has no goal.

    Args:
        probabilities: shape `(rows, num_labels)`.
        direction: +1 towards, -1 away, 0 not targeted; same shape.
        goals: of `goals_of`, same shape.

    Returns:
        Bool, shape `(rows,)`.
    """
    return ((direction * (probabilities - goals) >= 0) | (direction == 0)).all(1)
