"""What a study of counterfactuals measures; nothing is imported that a command line would wait for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, get_args

from ..choices import SanityCheck
from ..options import Range, check_options, option


SANITY_CHECKS = get_args(SanityCheck)


@dataclass(frozen=True)
class MeasureOptions:
    """What of a study costs much, and how much of it is made.

    Raises:
        ValueError: for a check that does not exist, or a number outside its range.
    """

    num_true_ways: Annotated[int, Range(at_least=1)] = option(
        150, "True ways to add a finding that an addition is compared with, where the truth is known (phantoms)."
    )
    region_controls: bool = option(
        True, "Also make the same edit in a random region and in the inverse one: two further edits of every image."
    )
    checks: list[str] = option(
        [], f"Among {', '.join(SANITY_CHECKS)}; each takes one or two further edits of some images."
    )
    num_check_images: Annotated[int, Range(at_least=1)] = option(20, "Images of each direction that are checked.")

    def __post_init__(self) -> None:
        check_options(self)
        if not set(self.checks) <= set(SANITY_CHECKS):
            raise ValueError(f"`checks` must be among {', '.join(SANITY_CHECKS)}, but got {' '.join(self.checks)}.")
