"""Make tables and figures again, each by what its kind takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tqdm.auto import tqdm

from .classification_tables import make_classification_table
from .counterfactual_tables import make_localisation_figure, make_score_table
from .generated_images import make_generation_table, make_panel, make_sweep
from .published import PublishedItem, published_items
from .reproduction import Reproduction
from .sources import MissingSource, Sources


MAKERS: Mapping[str, Callable[[PublishedItem, Sources], Reproduction]] = {
    "classification": make_classification_table,
    "counterfactuals": make_score_table,
    "localisation": make_localisation_figure,
    "generation": make_generation_table,
    "panel": make_panel,
    "sweep": make_sweep,
}


def reproduce(names: Sequence[str], sources: Sources) -> tuple[list[Reproduction], dict[str, str]]:
    """Make items again.

    Args:
        names: such as `"table-4"`; empty for all that the sources suffice for.
        sources: finished runs, models, data.

    Returns:
        What was made, and for what could not be made the reason, by name.

    Raises:
        ValueError: if a named item cannot be made, or none of all; for files that cannot be used.
    """
    made, not_made = [], {}
    progress = tqdm(list(names) or list(published_items()), desc="Reproducing", unit="item")
    for name in progress:
        progress.set_postfix_str(name)
        item = published_items()[name]
        try:
            made.append(MAKERS[item.kind](item, sources))
        except MissingSource as error:
            if names:
                raise MissingSource(f"{name} cannot be made: {error}") from error
            not_made[name] = str(error)
    if not made:
        raise MissingSource(f"No table or figure can be made. {next(iter(not_made.values()))}")
    return made, not_made
