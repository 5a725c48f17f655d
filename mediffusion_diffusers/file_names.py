"""Names of things, such as findings and images, as names of files."""

from __future__ import annotations

import re
from collections.abc import Sequence


_LONGEST = 60  # letters, of up to four bytes each; file systems take 255 bytes


def file_stems(names: Sequence[str]) -> list[str]:
    """A name for the files of each thing, without suffix, that no other of them has.

    Letters, digits, dots and dashes stay; whatever else becomes an underscore, and what is too long is cut. Names that
    are alike then, also on file systems that know no case, get their number behind a `~`.

    Args:
        names: any texts.

    Example:
        >>> file_stems(["Mass", "Pleural thickening", "a/b", "A b"])
        ['Mass', 'Pleural_thickening', 'a_b~3', 'A_b~4']
    """
    stems = [re.sub(r"[^\w.-]+", "_", name).lstrip(".-")[:_LONGEST] or "_" for name in names]
    folded = [stem.casefold() for stem in stems]
    return [
        stem if folded.count(key) == 1 else f"{stem}~{number}"
        for number, (stem, key) in enumerate(zip(stems, folded, strict=True), start=1)
    ]
