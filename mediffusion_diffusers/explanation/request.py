"""What is asked of every image: the labels to change, the pipeline's settings, and which rows are meant."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import torch

from ..choices import RowRule
from ..counterfactual_options import given_options
from ..data.input_rows import InputRow
from ..guidance import build_target
from ..version import __version__


# The pipeline's options as one value holds for a whole dataset; what is not given is the checkpoint's.
PipelineOptions: Any = given_options()


@dataclass(frozen=True)
class ExplanationRequest(PipelineOptions):
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


def run_identity(request: Any, pipe: Any, columns: Mapping[str, Any]) -> dict[str, Any]:
    """What two chunks must have in common to belong to one run, as plain values for JSON.

    The batch size, the engine and the number of processes are not among it: they change results by rounding at most.

    Args:
        request: what is asked.
        pipe: the pipeline.
        columns: names of the input columns that are read.
    """
    identity = {"model_hash": model_hash(pipe), "version": __version__, **asdict(request), **columns}
    return json.loads(json.dumps(identity))


def model_hash(pipe: Any) -> str:
    """SHA-256 over the configs and weights of a pipeline's components, the first 16 digits."""
    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        config = {key: value for key, value in getattr(component, "config", {}).items() if not key.startswith("_")}
        digest.update(f"{name} {type(component).__name__} {json.dumps(config, sort_keys=True, default=str)}".encode())
        if isinstance(component, torch.nn.Module):
            for key, tensor in sorted(component.state_dict().items()):
                digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def identity_differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what differs between an earlier identity and this run's; empty if they are the same.

    What one of them lacks counts as `None`: an option that was added since and is not given changes nothing.
    """
    names = sorted(there.keys() | now.keys())
    return [
        f"`{name}` is {there.get(name)!r} there and {now.get(name)!r} now"
        for name in names
        if there.get(name) != now.get(name)
    ]
