"""The request for counterfactuals: labels to change, the pipeline's settings, which rows are meant; its answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..choices import RowRule
from ..counterfactual_options import given_options
from ..data.difference_image import encode_difference
from ..data.input_rows import InputRow
from ..data.input_shards import InputDataset
from ..data.pictures import encode_png
from ..guidance import build_target
from ..image_processor import numpy_to_pil
from ..item_boundary import reason
from ..pipelines.base import NotFiniteError
from .classification import classifier_of
from .request import NOT_FINITE, Explainer, Picture, Request, Rows, output_schema, row_generator


# The pipeline's options as one value holds for a whole dataset; what is not given is the checkpoint's.
PipelineOptions: Any = given_options()


@dataclass(frozen=True)
class ExplanationRequest(PipelineOptions, Request):
    """One question to all images of a dataset, with any of the pipeline's options (see `CounterfactualOptions`).

    Args:
        away: labels to remove, by name.
        towards: labels to add.
        controls: whether to make the pipeline's control images.
        rows: `"all"`; `"labelled"`: rows whose labels say that something of `away` is present or something of
            `towards` absent; `"predicted"`: likewise by the model's own decision.
        seed: of the noise, where some is used; each row has a generator of its own.

    Raises:
        ValueError: for no label, an unknown rule, or an option outside its range.
    """

    away: tuple[str, ...] = ()
    towards: tuple[str, ...] = ()
    controls: bool = True
    rows: RowRule = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.away and not self.towards:
            raise ValueError("Name at least one label in `away` (to remove) or `towards` (to add).")
        super().__post_init__()

    def pipeline_arguments(self) -> dict[str, Any]:
        """The pipeline's keyword arguments but the images and generators."""
        labels = {"away": list(self.away), "towards": list(self.towards)}
        named = {name: names for name, names in labels.items() if names}
        return {**self.given(), "controls": self.controls, **named}

    def check(self, pipe: Any) -> None:
        """Refuse labels that the model does not know.

        Raises:
            ValueError: as [`~mediffusion_diffusers.guidance.build_target`].
        """
        build_target(self.towards or None, self.away or None, 1, pipe.label_names, pipe.unet.config.problem_type)

    def asks_about(self, present: Sequence[float], label_names: Sequence[str]) -> bool:
        """Whether there is something to change in an image.

        Args:
            present: one value per label: 1 present, 0 absent, NaN unknown.
            label_names: their names.
        """
        by_name = dict(zip(label_names, present, strict=True))
        return any(by_name[name] == 1 for name in self.away) or any(by_name[name] == 0 for name in self.towards)

    def is_asked_about(self, row: InputRow, label_names: Sequence[str]) -> bool:
        """Whether the row's labels do not rule it out: with `rows="labelled"` they say what there is to change."""
        return self.rows != "labelled" or self.asks_about(row.present_labels(len(label_names)), label_names)

    def explainer(self, pipe: Any, model_hash: str = "") -> CounterfactualExplainer:
        """Who edits."""
        return CounterfactualExplainer(pipe, self, model_hash)

    def label_names(self, dataset: InputDataset) -> tuple[str, ...]:
        """The dataset's labels, for `rows="labelled"`; only a prepared dataset says what its labels are.

        Raises:
            ValueError: if it does not, or has not those that are asked about.
        """
        if self.rows != "labelled":
            return ()
        if dataset.label_names is None:
            raise ValueError(
                "`rows='labelled'` needs a prepared dataset, whose dataset_info.json names the labels, but "
                f"{dataset.name!r} is none. Convert it with `mediffusion prepare`, or choose by the model's decision "
                "with `rows='predicted'`."
            )
        unknown = [name for name in (*self.away, *self.towards) if name not in dataset.label_names]
        if unknown:
            raise ValueError(
                f"`rows='labelled'` needs labels of the dataset, {list(dataset.label_names)}, but it has no {unknown}."
            )
        return dataset.label_names

    def schema(self) -> pa.Schema:
        """The columns that are written, readable by `datasets`, pictures as `Image`:

        - `image_id`, `shard`, `row`: the input's name for the image (null if it has none), its shard, its place there
          from 0;
        - `error`: why there is no explanation, else null; the columns below are then null;
        - `probabilities_before`, `_after`, `_null`: one float per label, of original, counterfactual and null edit;
        - `counterfactual`, `null_edit`: PNG pictures; `difference`: counterfactual minus original, signed, for
          `decode_difference`;
        - `guidance_scale`, `strength`: as used; `reached`: whether a search reached its target, null without one;
        - `l1`, `high_frequency_share`: size of the change, and the share of its energy above half of the highest
          frequency; `controls`: changes of the same `l1` by the plain gradient and by noise, each a `name`, an
          `image`, `probabilities` and a `high_frequency_share`; all null without controls;
        - `settings`: those of the pipeline, as JSON, null with an error; `label_names`, `model_hash`: the same in
          every row.
        """
        import datasets

        image, number, text = datasets.Image(), datasets.Value("float32"), datasets.Value("string")
        scores = datasets.List(number)
        control = {"name": text, "image": image, "probabilities": scores, "high_frequency_share": number}
        return output_schema(
            **{f"probabilities_{when}": scores for when in ("before", "after", "null")},
            **{"counterfactual": image, "difference": image, "null_edit": image},
            **{"guidance_scale": number, "strength": number, "reached": datasets.Value("bool")},
            **{"l1": number, "high_frequency_share": number, "controls": datasets.List(control)},
        )


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
