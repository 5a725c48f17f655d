"""Classify as with transformers' `pipeline("image-classification")`: a picture in, `[{"label", "score"}]` out."""

from __future__ import annotations

import os
from typing import Any, Literal, overload

import torch
from PIL import Image

from .options import Range, check_number
from .pipelines import MediffusionClassifyPipeline


Picture = Image.Image | str | os.PathLike[str]
Answer = list[dict[str, Any]]


class MediffusionImageClassificationPipeline:
    """The call of [`~transformers.ImageClassificationPipeline`] on a Mediffusion checkpoint.

    Args:
        pipeline: what classifies; `from_pretrained` loads it.

    Example:
        >>> from mediffusion_diffusers import MediffusionImageClassificationPipeline
        >>> classifier = MediffusionImageClassificationPipeline.from_pretrained("org/mediffusion-cxr")
        >>> classifier("chest.png", top_k=2)
        [{'label': 'Cardiomegaly', 'score': 0.91}, {'label': 'Effusion', 'score': 0.12}]
    """

    def __init__(self, pipeline: MediffusionClassifyPipeline):
        self.pipeline = pipeline

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> MediffusionImageClassificationPipeline:
        """Load a checkpoint; see `MediffusionClassifyPipeline.from_pretrained`.

        Args:
            pretrained_model_name_or_path: a pipeline folder, or a repository on the Hub.
            kwargs: such as `dtype`, `revision` or `token`.
        """
        return cls(MediffusionClassifyPipeline.from_pretrained(pretrained_model_name_or_path, **kwargs))

    @overload
    def __call__(
        self, inputs: Picture, top_k: int | None = 5, function_to_apply: str | None = None, batch_size: int = 16
    ) -> Answer: ...
    @overload
    def __call__(
        self,
        inputs: list[Picture] | tuple[Picture, ...],
        top_k: int | None = 5,
        function_to_apply: str | None = None,
        batch_size: int = 16,
    ) -> list[Answer]: ...
    def __call__(
        self,
        inputs: Picture | list[Picture] | tuple[Picture, ...],
        top_k: int | None = 5,
        function_to_apply: Literal["sigmoid", "softmax", "none"] | str | None = None,
        batch_size: int = 16,
    ) -> Answer | list[Answer]:
        """Classify one picture, or several.

        Args:
            inputs: a PIL image of any mode, the path of a picture or DICOM file, or a list of them. Addresses on the
                web are not fetched.
            top_k: how many labels to return, the most probable first; `None` for all of them.
            function_to_apply: what turns logits into scores: `"sigmoid"`, `"softmax"` or `"none"`; by default the one
                that belongs to the model's `problem_type`.
            batch_size: pictures at a time.

        Returns:
            `[{"label": name, "score": number}, ...]`, and for a list of pictures a list of them.

        Raises:
            ValueError: for pictures that cannot be read, or arguments that cannot be used.
        """
        if top_k is not None:
            check_number("top_k", top_k, Range(at_least=1), whole=True)
        is_single = isinstance(inputs, (Image.Image, str, os.PathLike))
        pictures: Any = [inputs] if is_single else inputs
        output = self.pipeline([_opened(one) for one in pictures], batch_size=batch_size, output_type="pt")
        scores = self._scores(output.logits, output.probabilities, function_to_apply)
        answers = [self._answer(row, top_k) for row in scores]
        return answers[0] if is_single else answers

    def _scores(
        self, logits: torch.Tensor, probabilities: torch.Tensor, function_to_apply: str | None
    ) -> torch.Tensor:
        functions = {None: probabilities, "sigmoid": logits.sigmoid(), "softmax": logits.softmax(-1), "none": logits}
        if function_to_apply not in functions:
            raise ValueError(
                "`function_to_apply` must be 'sigmoid', 'softmax', 'none' or None (by the model's `problem_type`), "
                f"but got {function_to_apply!r}."
            )
        return functions[function_to_apply]

    def _answer(self, scores: torch.Tensor, top_k: int | None) -> Answer:
        names = self.pipeline.label_names
        order = scores.argsort(descending=True, stable=True)[:top_k].tolist()
        return [{"label": names[index], "score": float(scores[index])} for index in order]


def _opened(picture: Any) -> Any:
    """The picture itself, or what its path leads to."""
    if not isinstance(picture, (str, os.PathLike)):
        return picture
    if str(picture).startswith(("http://", "https://")):
        raise ValueError(f"`inputs` must be images or paths, but got the address {str(picture)!r}. Download it first.")
    from .data.pictures import open_image

    return open_image(picture)
