"""Counterfactual procedures of other papers, each in a short file, on this project's networks.

Clean-room: written from what the papers say, none of their code was read or copied. Each is a function
`(problem, settings) -> latents`; what "the same networks, images and noise" means stands in `problem.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.guidance import GuidanceTarget, sampling_mode

from .ace import ACESettings, ace
from .dime import DiMESettings, dime
from .fast_dime import FastDiMESettings, fast_dime
from .mask_dime import MaskDiMESettings, mask_dime
from .problem import PeerSettings, Problem


Peer = Callable[[Problem, Any], torch.Tensor]

# By the name in the tables: the procedure, and the class of its settings.
PEERS: dict[str, tuple[Peer, type[PeerSettings]]] = {
    "DiME": (dime, DiMESettings),
    "ACE": (ace, ACESettings),
    "FastDiME": (fast_dime, FastDiMESettings),
    "MaskDiME-like": (mask_dime, MaskDiMESettings),
}

__all__ = ["PEERS", "Peer", "PeerSettings", "Problem", "change_images"]


@torch.no_grad()
def change_images(
    pipe: MediffusionCounterfactualPipeline,
    images: Any,
    target: GuidanceTarget,
    name: str,
    settings: PeerSettings,
    generator: list[torch.Generator],
    classifier: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Change images by a peer's procedure.

    Args:
        pipe: whose networks are used.
        images: as for the pipeline.
        target: what is wanted of each image.
        name: of the peer, in `PEERS`.
        settings: of its class.
        generator: one per image.
        classifier: see `Problem`.

    Returns:
        Shape `(num, channels, height, width)`, float32 in [0, 1].
    """
    change, _ = PEERS[name]
    with sampling_mode(pipe.vae, pipe.unet):
        latents = change(Problem(pipe, pipe.encode_images(images), target, generator, classifier), settings)
        return (pipe.decode_latents(latents).float() + 1) / 2
