"""What else is known of an image: the column `metadata` of a prepared dataset, a JSON object in each row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """The cell of a row; what is unknown is left out, as JSON has no NaN.

    Args:
        metadata: values that JSON can hold; None and NaN are unknown.
    """
    known = {
        key: value
        for key, value in metadata.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }
    return json.dumps(known, ensure_ascii=False, sort_keys=True)


def read_metadata(text: str | None) -> dict[str, Any]:
    """What a cell says; nothing if it is empty.

    Raises:
        ValueError: if it is no JSON object, without what it says, which may be about a person.
    """
    try:
        metadata = json.loads(text or "{}")
    except (ValueError, TypeError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise ValueError(
            "The `metadata` of every row of a prepared dataset must be a JSON object, but that of one is none. "
            "Convert the dataset again with `mediffusion prepare`."
        )
    return metadata
