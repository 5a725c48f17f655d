"""Which labels guidance pushes, and what it asks of the classifier's logits (paper Sec. 3.4 and 3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F


# One image's labels: a name, an index, or several of them.
Labels = str | int | Sequence[str | int]


@dataclass(frozen=True)
class GuidanceTarget:
    """Where guidance pushes each image's labels, and how firmly it holds the others.

    Args:
        direction: shape `(batch, num_labels)`: +1 towards a label, -1 away from it, 0 leaves it alone.
        problem_type: as in the model's config.
        hold: weight of the penalty on changes of the logits that are not targeted; 0 lets them go.
        reference_logits: where those logits are held, shape `(batch, num_labels)`.
    """

    direction: torch.Tensor
    problem_type: str
    hold: float = 0.0
    reference_logits: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.direction)

    def select(self, rows: torch.Tensor) -> GuidanceTarget:
        """The target of some of the images, without references."""
        return GuidanceTarget(self.direction[rows], self.problem_type, self.hold)

    def to(self, device: torch.device | str) -> GuidanceTarget:
        """The target on a device."""
        return replace(self, direction=self.direction.to(device))

    def clone(self) -> GuidanceTarget:
        """Tensors of its own, outside of any inference mode."""
        reference = self.reference_logits
        return replace(
            self,
            direction=self.direction.clone(),
            reference_logits=None if reference is None else reference.clone(),
        )

    def objective(self, logits: torch.Tensor) -> torch.Tensor:
        r"""What guidance raises: `log g(y | .) - hold * mean_j (l_j - l_j^ref)^2`, j over the labels not targeted.

        With one class per image only the odds among the other classes are held: their logits count from their mean.

        Args:
            logits: shape `(batch, num_labels)`.

        Returns:
            Shape `(batch,)`.

        Raises:
            ValueError: if there is a `hold` but no `reference_logits`.
        """
        log_prob = self.log_prob(logits)
        if self.hold == 0:
            return log_prob
        if self.reference_logits is None:
            raise ValueError(
                "`hold` above 0 needs `reference_logits`, where the other labels are held (see `hold_at`)."
            )
        is_other = (self.direction == 0).to(logits)
        count = is_other.sum(1).clamp_min(1)
        change = logits - self.reference_logits.to(logits)
        if self.problem_type == "single_label_classification":
            change = change - (change * is_other).sum(1, keepdim=True) / count[:, None]
        return log_prob - self.hold * (change.square() * is_other).sum(1) / count

    def log_prob(self, logits: torch.Tensor) -> torch.Tensor:
        r"""Log-probability of the target under the classifier: the `log g(y | .)` of Eq. 2.

        Several labels add up. Independent findings (sigmoid) give `log p` towards and `log(1 - p)` away; one class
        per image (softmax) gives the log of the wanted class and `log(1 - p)` of the unwanted ones.

        Args:
            logits: shape `(batch, num_labels)`.

        Returns:
            Shape `(batch,)`, at most 0.
        """
        direction = self.direction.to(logits)
        if self.problem_type == "multi_label_classification":
            return (F.logsigmoid(direction * logits) * direction.abs()).sum(dim=1)
        log_p, log_not_p = _log_probs(logits)
        return (torch.where(direction > 0, log_p, log_not_p) * direction.abs()).sum(dim=1)

    def log_odds(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-odds of the target under the classifier: `log p - log(1 - p)` towards a label, its negative away.

        Those of several labels add up.

        Args:
            logits: shape `(batch, num_labels)`.

        Returns:
            Shape `(batch,)`.
        """
        direction = self.direction.to(logits)
        if self.problem_type == "multi_label_classification":
            return (direction * logits).sum(dim=1)
        log_p, log_not_p = _log_probs(logits)
        return (direction * (log_p - log_not_p)).sum(dim=1)


def _log_probs(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`log p` and `log(1 - p)` of each class, one class per image; shape of `logits` each."""
    log_p = F.log_softmax(logits, dim=1)
    # log(1 - p_k) = logsumexp of the other log-probabilities: exact where 1 - p would underflow.
    others = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    return log_p, log_p[:, None, :].masked_fill(others, -torch.inf).logsumexp(dim=2)


def build_target(
    towards: Labels | Sequence[Labels] | None,
    away: Labels | Sequence[Labels] | None,
    batch_size: int,
    label_names: Sequence[str],
    problem_type: str,
    hold: float = 0.0,
) -> GuidanceTarget:
    """Turn label names or indices into a target.

    A single label or a flat list holds for every image; a list of lists gives one list of labels per image (an empty
    one leaves that image without).

    Args:
        towards: labels to make more probable.
        away: labels to make less probable.
        batch_size: number of images.
        label_names: the model's labels in order.
        problem_type: as in the model's config.
        hold: weight of the penalty on changes of the other labels' logits, at least 0.

    Returns:
        The target, on the CPU.

    Raises:
        ValueError: for an unknown label, a label named towards and away, no label at all, several classes towards
            for a single-label model, or a list of lists whose length is not `batch_size`.
    """
    direction = torch.zeros(batch_size, len(label_names))
    for name, labels, sign in (("towards", towards, 1.0), ("away", away, -1.0)):
        for row, row_labels in enumerate(_labels_per_image(name, labels, batch_size)):
            for label in row_labels:
                column = _label_index(name, label, label_names)
                if direction[row, column] == -sign:
                    raise ValueError(
                        f"Label {label_names[column]!r} is named in both `towards` and `away` for the same image. "
                        "Name it in one of them."
                    )
                direction[row, column] = sign
    if not direction.any(dim=1).all():
        raise ValueError(
            "Every image needs at least one label in `towards` or `away`, but some have none. "
            f"Known labels: {', '.join(label_names)}."
        )
    if problem_type == "single_label_classification" and ((direction > 0).sum(dim=1) > 1).any():
        raise ValueError(
            "This model knows one class per image, so `towards` must name one class for each image, but it names "
            "several."
        )
    return GuidanceTarget(direction, problem_type, hold)


def count_label_rows(labels: Labels | Sequence[Labels] | None) -> int | None:
    """Number of lists in a list of lists of labels; None where the labels hold for every image."""
    if not isinstance(labels, (list, tuple)):
        return None
    return len(labels) if any(isinstance(item, (list, tuple)) for item in labels) else None


def _labels_per_image(name: str, labels: Any, batch_size: int) -> list[list[str | int]]:
    """Spread `towards` or `away` over the batch."""
    if labels is None:
        return [[] for _ in range(batch_size)]
    if isinstance(labels, (str, int, Integral)):
        return [[labels]] * batch_size  # type: ignore[list-item]
    if hasattr(labels, "tolist"):  # of numpy or torch
        labels = labels.tolist()
    if not isinstance(labels, (list, tuple, set, frozenset)):
        raise ValueError(
            f"`{name}` must be a label, a list of labels or a list of such lists, but got {labels!r}. Name labels to "
            "add in `towards` and labels to remove in `away`."
        )
    nested = [isinstance(item, (list, tuple)) for item in labels]
    if not any(nested):
        return [list(labels)] * batch_size
    if not all(nested) or len(labels) != batch_size:
        raise ValueError(
            f"`{name}` as a list of lists must hold one list of labels for each of the {batch_size} images, but it "
            f"holds {len(labels)} items: {labels!r}."
        )
    return [list(item) for item in labels]


def _label_index(name: str, label: str | int, label_names: Sequence[str]) -> int:
    """Index of a label given by name or index."""
    if isinstance(label, str) and label in label_names:
        return list(label_names).index(label)
    if isinstance(label, (int, Integral)) and not isinstance(label, bool) and 0 <= label < len(label_names):
        return int(label)
    raise ValueError(
        f"`{name}` names the unknown label {label!r}. Known labels: "
        f"{', '.join(f'{known} ({index})' for index, known in enumerate(label_names))}."
    )
