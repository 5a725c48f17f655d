"""Counterfactuals of batches of pictures, and the output rows that hold them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..data.difference_image import encode_difference
from ..data.input_rows import InputRow
from ..data.pictures import encode_png
from ..image_processor import numpy_to_pil
from ..item_boundary import reason
from ..pipelines.base import NotFiniteError
from .chunk import NOT_FINITE, Explainer, Picture, Rows
from .classification import classifier_of
from .request import row_generator


_SCORES = ("probabilities_before", "probabilities_after", "probabilities_null")


class CounterfactualExplainer(Explainer):
    """Explains pictures by counterfactuals, as an `ExplanationRequest` asks."""

    def is_asked_about(self, row: InputRow, label_names: tuple[str, ...]) -> bool:
        """Whether the row's labels do not rule it out."""
        return self.request.is_asked_about(row, label_names)

    def chosen(self, pictures: list[Picture]) -> list[Picture]:
        """With `rows="predicted"`, the pictures in which the model sees something to change; else all."""
        if self.request.rows != "predicted":
            return pictures
        output = classifier_of(self.pipe)([picture.image for picture in pictures], batch_size=len(pictures))
        present = [[float(name in labels) for name in output.label_names] for labels in output.labels]
        asked = [self.request.asks_about(each, output.label_names) for each in present]
        return [picture for picture, is_asked in zip(pictures, asked, strict=True) if is_asked]

    def explain(self, shard: str, pictures: list[Picture]) -> Callable[[], Rows]:
        """Edit the pictures now; the call that is returned encodes what came of it."""
        try:
            output = self.pipe(
                image=[picture.image for picture in pictures],
                **self.request.pipeline_arguments(),
                generator=[row_generator(self.request.seed, shard, picture.row.number) for picture in pictures],
                output_type="pt",
            )
        except NotFiniteError as error:
            if len(pictures) == 1:
                failed = self.row(shard, pictures[0].row, error=reason(error))
                return lambda: [failed]
            singles = [self.explain(shard, [picture]) for picture in pictures]
            return lambda: [row for encode in singles for row in encode()]
        return lambda: self._encoded(shard, pictures, output)

    def _encoded(self, shard: str, pictures: list[Picture], output: Any) -> Rows:
        settings = json.dumps({**output.settings, **self.request.pipeline_arguments()}, sort_keys=True)
        rows = []
        for index, picture in enumerate(pictures):
            scores = {name: getattr(output, name)[index] for name in _SCORES}
            results = (output.difference[index], output.null_difference[index], *scores.values())
            if not all(torch.isfinite(values).all() for values in results):
                rows.append(self.row(shard, picture.row, error=NOT_FINITE))
                continue
            difference = {"bytes": encode_difference(_channels_last(output.difference[index])), "path": None}
            rows.append(
                self.row(
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
