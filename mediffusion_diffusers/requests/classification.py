"""Probabilities and embeddings of every image of a dataset: what the classifier says, without any edit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import pyarrow as pa
import torch

from ..image_processor import normalize
from ..options import Range, check_options
from ..pipelines import MediffusionClassifyPipeline
from .request import NOT_FINITE, Explainer, Picture, Request, Rows, output_schema, row_generator


@dataclass(frozen=True)
class ClassificationRequest(Request):
    """What is asked of every image when nothing is edited; timesteps and noises as in `MediffusionClassifyPipeline`.

    Args:
        timesteps: where the classifier is asked; several are averaged (on logits).
        num_noise_samples: noises per image and timestep above 0; 0 asks at clean latents.
        embeddings: whether the classifier's pooled features at t = 0 are written, too.
        seed: of the noises; each row has a generator of its own.

    Raises:
        ValueError: for an option outside its range.
    """

    timesteps: tuple[Annotated[int, Range(at_least=0)], ...] = (0,)
    num_noise_samples: Annotated[int, Range(at_least=0)] = 0
    embeddings: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self)

    def check(self, pipe: Any) -> None:
        """Refuse timesteps that the model does not have.

        Raises:
            ValueError: as `MediffusionClassifyPipeline.check_inputs`.
        """
        classifier_of(pipe).check_inputs(self.timesteps, self.num_noise_samples, None, 1, "pt")

    def explainer(self, pipe: Any, model_hash: str = "") -> ClassificationExplainer:
        """Who classifies."""
        return ClassificationExplainer(pipe, self, model_hash)

    def schema(self) -> pa.Schema:
        """The columns that are written.

        - `image_id`, `shard`, `row`, `error`, `label_names`, `settings`, `model_hash`: as for counterfactuals;
        - `probabilities`, `logits`: one float per label;
        - `embedding`: the pooled features that the classifier head reads at t = 0, null without embeddings.
        """
        import datasets

        numbers = datasets.List(datasets.Value("float32"))
        return output_schema(probabilities=numbers, logits=numbers, embedding=numbers)


def classifier_of(pipe: Any) -> MediffusionClassifyPipeline:
    """The classifying pipeline of the same components."""
    classifier = MediffusionClassifyPipeline(vae=pipe.vae, unet=pipe.unet, scheduler=pipe.scheduler)
    classifier.set_progress_bar_config(disable=True)
    return classifier


class ClassificationExplainer(Explainer):
    """Classifies pictures, as a `ClassificationRequest` asks; `pipe` is any pipeline of the checkpoint."""

    def __init__(self, pipe: Any, request: ClassificationRequest, model_hash: str = ""):
        super().__init__(classifier_of(pipe), request, model_hash)
        self._settings = json.dumps(asdict(request), sort_keys=True)

    @torch.no_grad()
    def explain(self, shard: str, pictures: list[Picture]) -> Callable[[], Rows]:
        """Classify the pictures now; the call that is returned makes rows of the answers."""
        request, pipe = self.request, self.pipe
        images = torch.stack([picture.image for picture in pictures])
        embeddings = None
        if request.embeddings or request.timesteps == (0,):
            encoded = pipe.unet.encode(pipe.encode_pixels(normalize(images)), 0)
            embeddings = pipe.unet.pool_features(encoded) if request.embeddings else None
        if request.timesteps == (0,):
            logits = pipe.unet.classify(encoded).float()
        else:
            noise = [row_generator(request.seed, shard, picture.row.number) for picture in pictures]
            options = {"timesteps": request.timesteps, "num_noise_samples": request.num_noise_samples}
            output = pipe(images, **options, batch_size=len(images), generator=noise, output_type="pt")
            logits = output.logits
        probabilities = pipe.logits_to_probabilities(logits)
        return lambda: self._rows(shard, pictures, logits, probabilities, embeddings)

    def _rows(
        self,
        shard: str,
        pictures: list[Picture],
        logits: torch.Tensor,
        probabilities: torch.Tensor,
        embeddings: torch.Tensor | None,
    ) -> Rows:
        scores = {"logits": logits, "probabilities": probabilities}
        if embeddings is not None:
            scores["embedding"] = embeddings
        scores = {name: values.float().cpu() for name, values in scores.items()}
        rows = []
        for index, picture in enumerate(pictures):
            own = {name: values[index] for name, values in scores.items()}
            if all(torch.isfinite(values).all() for values in own.values()):
                answers: dict[str, Any] = {name: values.tolist() for name, values in own.items()}
                rows.append(self.row(shard, picture.row, **answers, settings=self._settings))
            else:
                rows.append(self.row(shard, picture.row, error=NOT_FINITE))
        return rows
