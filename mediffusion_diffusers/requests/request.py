"""A request to all images of a dataset, and who answers it: some pictures in, rows of the output table out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from ..data.input_rows import InputRow
from ..data.input_shards import InputDataset


NOT_FINITE = "The model returned NaN or infinite values."

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Picture:
    """A row with its decoded picture, shape `(channels, height, width)` in [0, 1]."""

    row: InputRow
    image: torch.Tensor


class Request(ABC):
    """What is asked of every image; a dataclass, whose fields tell one run from another."""

    @abstractmethod
    def check(self, pipe: Any) -> None:
        """Refuse what the model does not know.

        Raises:
            ValueError: saying what it is.
        """

    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns that are written."""

    @abstractmethod
    def explainer(self, pipe: Any, model_hash: str = "") -> Explainer:
        """Who answers; see `Explainer`."""

    def label_names(self, dataset: InputDataset) -> tuple[str, ...]:
        """The dataset's labels, if they decide which rows are meant.

        Raises:
            ValueError: if it does not have them.
        """
        return ()


class Explainer(ABC):
    """Says something about batches of pictures.

    Args:
        pipe: the pipeline that is asked.
        request: what to ask.
        model_hash: written to every row.
    """

    def __init__(self, pipe: Any, request: Any, model_hash: str = ""):
        self.pipe, self.request = pipe, request
        self._constants = {"label_names": list(pipe.label_names), "model_hash": model_hash}

    def is_asked_about(self, row: InputRow, label_names: tuple[str, ...]) -> bool:
        """Whether the row's labels do not rule it out."""
        return True

    def chosen(self, pictures: list[Picture]) -> list[Picture]:
        """The pictures that the model does not rule out."""
        return pictures

    @abstractmethod
    def explain(self, shard: str, pictures: list[Picture]) -> Callable[[], Rows]:
        """Ask the model now; the call that is returned makes output rows of its answers, in any thread."""

    def row(self, shard: str, row: InputRow, error: str | None = None, **values: Any) -> dict[str, Any]:
        """An output row, by default without an answer."""
        place = {"image_id": row.image_id, "shard": shard, "row": row.number}
        return {**place, "error": error, **values, **self._constants}


def output_schema(**answers: Any) -> pa.Schema:
    """The columns of an output file: which row, why it has no answer, the answers, and what gave them."""
    import datasets

    text = datasets.Value("string")
    place = {"image_id": text, "shard": text, "row": datasets.Value("int64"), "error": text}
    made_by = {"label_names": datasets.List(text), "settings": text, "model_hash": text}
    return datasets.Features({**place, **answers, **made_by}).arrow_schema


def row_generator(seed: int, shard: str, row: int) -> torch.Generator:
    """The row's own source of noise: the same in any batch, process and restart."""
    digest = hashlib.sha256(f"{seed}/{shard}/{row}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
