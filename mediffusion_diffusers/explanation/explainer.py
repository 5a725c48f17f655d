"""Rows in, rows of an output shard out: decode, choose, explain in batches, encode."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data.pictures import encode_png
from ..image_processor import numpy_to_pil
from ..item_boundary import reason
from ..pipelines import MediffusionClassifyPipeline
from ..pipelines.base import NotFiniteError
from .difference_image import encode_difference
from .input_rows import InputRow, read_picture
from .request import ExplanationRequest


_SCORES = ("probabilities_before", "probabilities_after", "probabilities_null")


@dataclass(frozen=True)
class _Picture:
    """A row with its decoded picture, shape `(channels, height, width)` in [0, 1]."""

    row: InputRow
    image: torch.Tensor


@dataclass
class ExplainedRows:
    """Rows of an output shard.

    Args:
        rows: in the order of the input, see `shards` for the columns.
        num_passed_over: input rows that the request does not ask about, which have none.
    """

    rows: list[dict[str, Any]]
    num_passed_over: int = 0

    @property
    def num_failed(self) -> int:
        """Rows with an error."""
        return sum(row["error"] is not None for row in self.rows)


class RowExplainer:
    """Explains rows with one pipeline.

    Args:
        pipe: a `MediffusionCounterfactualPipeline`.
        request: what to ask.
        model_hash: written to every row.
        batch_size: images per call of the pipeline.
        label_names: of the dataset's labels, for `rows="labelled"`.
    """

    def __init__(
        self,
        pipe: Any,
        request: ExplanationRequest,
        model_hash: str,
        batch_size: int,
        label_names: Sequence[str] | None = None,
    ):
        self.pipe, self.request, self.batch_size = pipe, request, batch_size
        self.label_names = list(label_names or [])
        self.constants = {"label_names": list(pipe.label_names), "model_hash": model_hash}
        self.channels = pipe.image_processor.config.channels
        self.classifier: MediffusionClassifyPipeline | None = None
        if request.rows == "predicted":
            self.classifier = MediffusionClassifyPipeline(vae=pipe.vae, unet=pipe.unet, scheduler=pipe.scheduler)
            self.classifier.set_progress_bar_config(disable=True)

    def explain(
        self,
        shard: str,
        rows: Iterable[InputRow],
        before_batch: Callable[[], None],
        after_batch: Callable[[list[dict[str, Any]]], None],
    ) -> ExplainedRows:
        """Explain rows of one shard.

        Args:
            shard: name of the input shard.
            rows: some of its rows.
            before_batch: called before every batch; what it raises ends the work.
            after_batch: called with the rows of every batch.
        """
        done = ExplainedRows([])
        pictures = self._chosen(self._decoded(shard, rows, done), done)
        for batch in _batches(pictures, self.batch_size):
            before_batch()
            explained = self._explain_batch(shard, batch)
            done.rows += explained
            after_batch(explained)
        done.rows.sort(key=lambda row: row["row"])
        return done

    def _decoded(self, shard: str, rows: Iterable[InputRow], done: ExplainedRows) -> Iterator[_Picture]:
        """Rows that are asked about and have a picture; the others are recorded."""
        for row in rows:
            try:
                if not self._is_asked_about(row):
                    done.num_passed_over += 1
                    continue
                picture = _Picture(row, read_picture(row, self.channels, *self.pipe.image_size))
            except Exception as error:  # the boundary of one row: whatever its content provokes is its reason
                done.rows.append(self._row(shard, row, error=reason(error)))
            else:
                yield picture

    def _is_asked_about(self, row: InputRow) -> bool:
        """With `rows="labelled"`, whether the labels say that there is something to change."""
        return self.request.rows != "labelled" or self.request.asks_about(
            row.present_labels(len(self.label_names)), self.label_names
        )

    def _chosen(self, pictures: Iterator[_Picture], done: ExplainedRows) -> Iterator[_Picture]:
        """With `rows="predicted"`, only pictures in which the model sees something to change."""
        if self.classifier is None:
            yield from pictures
            return
        for batch in _batches(pictures, self.batch_size):
            output = self.classifier([picture.image for picture in batch], batch_size=len(batch))
            for picture, labels in zip(batch, output.labels, strict=True):
                present = [float(name in labels) for name in output.label_names]
                if self.request.asks_about(present, output.label_names):
                    yield picture
                else:
                    done.num_passed_over += 1

    def _explain_batch(self, shard: str, batch: Sequence[_Picture]) -> list[dict[str, Any]]:
        try:
            output = self.pipe(
                image=[picture.image for picture in batch],
                **self.request.pipeline_arguments(),
                generator=[self.request.generator(shard, picture.row.number) for picture in batch],
                output_type="pt",
            )
        except NotFiniteError as error:
            if len(batch) == 1:
                return [self._row(shard, batch[0].row, error=reason(error))]
            return [row for picture in batch for row in self._explain_batch(shard, [picture])]
        settings = json.dumps({**output.settings, **self.request.pipeline_arguments()}, sort_keys=True)
        rows = []
        for index, picture in enumerate(batch):
            scores = {name: getattr(output, name)[index] for name in _SCORES}
            results = (output.difference[index], output.null_difference[index], *scores.values())
            if not all(torch.isfinite(values).all() for values in results):
                rows.append(self._row(shard, picture.row, error="The model returned NaN or infinite values."))
                continue
            difference = {"bytes": encode_difference(_channels_last(output.difference[index])), "path": None}
            rows.append(
                self._row(
                    shard,
                    picture.row,
                    **{name: values.tolist() for name, values in scores.items()},
                    counterfactual=_image_value(output.images[index]),
                    difference=difference,
                    null_edit=_image_value(output.null_images[index]),
                    guidance_scale=float(output.guidance_scales[index]),
                    strength=float(output.strengths[index]),
                    reached=None if output.reached is None else bool(output.reached[index]),
                    **_controls(output, index),
                    settings=settings,
                )
            )
        return rows

    def _row(self, shard: str, row: InputRow, error: str | None = None, **values: Any) -> dict[str, Any]:
        place = {"image_id": row.image_id, "shard": shard, "row": row.number}
        return {**place, "error": error, **values, **self.constants}


def _batches(pictures: Iterable[_Picture], size: int) -> Iterator[list[_Picture]]:
    batch: list[_Picture] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _controls(output: Any, index: int) -> dict[str, Any]:
    """One image's change in figures and its controls, if the pipeline's output has any."""
    made = output.controls
    if made is None:
        return {}
    own = made.pop("counterfactual")
    controls = [
        {
            "name": name,
            "image": _image_value(control.images[index]),
            "probabilities": control.probabilities[index].tolist(),
            "high_frequency_share": float(control.high_frequency_share[index]),
        }
        for name, control in made.items()
    ]
    own_share = float(own.high_frequency_share[index])
    return {"l1": float(output.l1[index]), "high_frequency_share": own_share, "controls": controls}


def _image_value(image: torch.Tensor) -> dict[str, Any]:
    """A picture `(channels, height, width)` in [0, 1] as a value of an `Image` column."""
    return {"bytes": encode_png(numpy_to_pil(_channels_last(image)[None])[0]), "path": None}


def _channels_last(image: torch.Tensor) -> np.ndarray:
    return image.float().cpu().permute(1, 2, 0).numpy()
