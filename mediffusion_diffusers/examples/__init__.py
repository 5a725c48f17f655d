"""A small checkpoint and a few images that come with the package: everything can be tried without data or network.

Both are of chest phantoms, drawn by `data.phantom`: no person was imaged, and the true answers are known. Like every
output of the package they are for research and teaching alone.

    >>> from mediffusion_diffusers import MediffusionCounterfactualPipeline, examples
    >>> pipe = MediffusionCounterfactualPipeline.from_pretrained(examples.checkpoint())
    >>> example = examples.images()[0]
    >>> output = pipe(example.image, away=example.labels[0])
"""

from .checkpoint import checkpoint
from .images import ExampleImage, images


__all__ = ["ExampleImage", "checkpoint", "images"]
