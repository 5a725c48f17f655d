"""From edited latents to the pictures that the user gets, and that every judge is shown."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..base import MediffusionPipeline
from .editor import Edit
from .settings import CounterfactualSettings


@dataclass(frozen=True)
class Shown:
    """Pictures as the user gets them, and what they are classified by.

    Args:
        pictures: shape `(num, channels, height, width)` in [-1, 1]; latents, where latents are asked for.
        latents: of these pictures, encoded anew.
    """

    pictures: torch.Tensor
    latents: torch.Tensor


class Display:
    """Shows latents as pictures, with the image's own detail or without.

    Args:
        pipe: the pipeline.
        pixels: of each image, in [-1, 1].
        clean_latents: of each image.
        settings: resolved ones.
        output_type: of the call. Where latents are asked for they are their own picture, and `detail` is unused.
    """

    def __init__(
        self,
        pipe: MediffusionPipeline,
        pixels: torch.Tensor,
        clean_latents: torch.Tensor,
        settings: CounterfactualSettings,
        output_type: str,
    ):
        self.pipe, self.is_latent = pipe, output_type == "latent"
        self.keeps_detail = settings.detail == "keep" and not self.is_latent
        self.is_confined = not isinstance(settings.mask, str)
        self.original = Shown(clean_latents if self.is_latent else pixels.to(clean_latents.device), clean_latents)
        self._last_null: tuple[torch.Tensor, torch.Tensor] | None = None

    def edited(self, edit: Edit, image_index: torch.Tensor) -> Shown:
        """The counterfactuals.

        With detail kept they are `clamp(x + D(z') - D(z_null))`, D the decoder: what both decodings lose, and what the
        null edit changes, cancels out. Where the user has given a mask the change ends at its border, which a decoder
        does not respect.

        Args:
            edit: their latents, and those of the null edits.
            image_index: image of each row, shape `(rows,)`, on the CPU.
        """
        if not self.keeps_detail:
            return self._as_decoded(edit.latents)
        null_latents = edit.null_latents[edit.null_index]
        change = self.pipe.decode_latents(edit.latents).float() - self.null_pictures(edit)[edit.null_index].float()
        # A batch of another size is rounded otherwise; what was not edited has not changed at all.
        is_edited = (edit.latents != null_latents).flatten(1).any(1).view(-1, 1, 1, 1)
        change = torch.where(is_edited, change, 0.0)
        if edit.region is not None and self.is_confined:
            change = change * F.interpolate((edit.region > 0).to(change), self.pipe.image_size, mode="nearest")
        pictures = (self.original.pictures[image_index].float() + change).clamp(-1.0, 1.0)
        return Shown(pictures, self.pipe.encode_pixels(pictures))

    def null(self, edit: Edit, image_index: torch.Tensor) -> tuple[Shown, torch.Tensor]:
        """The null edits, and which of them belongs to each row; with detail kept, the images themselves.

        Args:
            edit: as for `edited`.
            image_index: as for `edited`.
        """
        return (self.original, image_index) if self.keeps_detail else (self._null_as_decoded(edit), edit.null_index)

    def null_pictures(self, edit: Edit) -> torch.Tensor:
        """The null edits as they are decoded; the trials of a search share them."""
        if self._last_null is None or self._last_null[0] is not edit.null_latents:
            is_latent = self.is_latent
            decoded = edit.null_latents if is_latent else self.pipe.decode_latents(edit.null_latents)
            self._last_null = (edit.null_latents, decoded)
        return self._last_null[1]

    def _null_as_decoded(self, edit: Edit) -> Shown:
        pictures = self.null_pictures(edit)
        return Shown(pictures, pictures if self.is_latent else self.pipe.encode_pixels(pictures))

    def _as_decoded(self, latents: torch.Tensor) -> Shown:
        if self.is_latent:
            return Shown(latents, latents)
        pictures = self.pipe.decode_latents(latents)
        return Shown(pictures, self.pipe.encode_pixels(pictures))
