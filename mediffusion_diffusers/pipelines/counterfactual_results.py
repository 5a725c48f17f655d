"""From edited latents to what the user gets: pictures, scores, differences, controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..controls import ascend_log_probability, change_by, high_frequency_share, random_noise_control
from ..guidance import ExternalClassifier
from ..image_processor import denormalize, normalize
from .base import MediffusionPipelineMixin, scores_to_output
from .counterfactual_sampling import EditRows
from .outputs import MediffusionCounterfactualPipelineOutput


_NOISE_SEED = 0  # of the random-noise control: the same field for every image


@dataclass
class EditResult:
    """Edited latents, and how each came about.

    Args:
        latents: of the counterfactuals, shape `(rows, channels, height, width)`.
        null_latents: of the null edits, which several counterfactuals may share.
        null_index: null edit of each row, shape `(rows,)`.
        guidance_scales: scale of each row, shape `(rows,)`.
        strengths: strength of each row, shape `(rows,)`.
        reached: whether a search reached its goal, bool, shape `(rows,)`; None without a search.
    """

    latents: torch.Tensor
    null_latents: torch.Tensor
    null_index: torch.Tensor
    guidance_scales: torch.Tensor
    strengths: torch.Tensor
    reached: torch.Tensor | None = None

    @classmethod
    def of_one_strength(
        cls,
        latents: torch.Tensor,
        null_latents: torch.Tensor,
        rows: EditRows,
        scales: Sequence[float],
        strength: float,
    ) -> EditResult:
        """The result of a call without a search; `scales` holds one for each row."""
        strengths = torch.full((len(rows),), float(strength))
        return cls(latents, null_latents, rows.image_index, torch.tensor(scales, dtype=torch.float32), strengths)


class CounterfactualResultsMixin(MediffusionPipelineMixin):
    """Decoding, scoring and controls of [`MediffusionCounterfactualPipeline`]."""

    def _show(self: Any, latents: torch.Tensor, output_type: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures in [-1, 1] and the latents that they are classified by; latents are their own picture."""
        if output_type == "latent":
            return latents, latents
        pictures = self.decode_latents(latents)
        return pictures, self.encode_pixels(pictures)

    def _goal_scores(
        self: Any, pictures: torch.Tensor, latents: torch.Tensor, external: ExternalClassifier | None
    ) -> torch.Tensor:
        """Probabilities by the classifier that guides: the model's own, or an external one's."""
        if external is None:
            return self.logits_to_probabilities(self.classify_latents(latents))
        logits = external(pictures if pictures.shape[-2:] == self.image_size else self.decode_latents(latents)).float()
        is_single = external.problem_type == "single_label_classification"
        return logits.softmax(-1) if is_single else logits.sigmoid()

    def _assemble(
        self: Any,
        pixels: torch.Tensor,
        clean_latents: torch.Tensor,
        rows: EditRows,
        result: EditResult,
        output_type: str,
        external: ExternalClassifier | None,
        guide: ExternalClassifier | None,
        with_controls: bool,
        **fields: Any,
    ) -> MediffusionCounterfactualPipelineOutput:
        """Decode, classify and compare.

        Args:
            pixels: original of each row, in [-1, 1].
            clean_latents: latents of each image.
            rows: the counterfactuals.
            result: their latents.
            output_type: of the call.
            external: an outside classifier whose probabilities are reported.
            guide: the same, if it guided.
            with_controls: whether to make the controls.
            fields: of the output, passed on.
        """
        is_latent = output_type == "latent"
        before = clean_latents[rows.image_index]
        original = before if is_latent else pixels.to(clean_latents.device)
        edited, edited_latents = self._show(result.latents, output_type)
        null, null_latents = self._show(result.null_latents, output_type)
        own = [
            self.logits_to_probabilities(self.classify_latents(latents))
            for latents in (clean_latents, edited_latents, null_latents)
        ]
        own = [own[0][rows.image_index], own[1], own[2][result.null_index]]
        scores = [scores_to_output(probabilities, output_type) for probabilities in own]
        if external is not None:
            stages = ((original, before), (edited, edited_latents), (null, null_latents))
            judged = [self._goal_scores(*stage, external) for stage in stages]
            judged[2] = judged[2][result.null_index]
            for name, probabilities in zip(("before", "after", "null"), judged, strict=True):
                fields[f"external_probabilities_{name}"] = scores_to_output(probabilities, output_type)
            fields["external_label_names"] = external.label_names
        original, edited, null = (picture.float() for picture in (original, edited, null[result.null_index]))
        if with_controls and not is_latent:
            change = (result.latents - before).flatten(1).norm(dim=1)
            fields |= self._controls(original, edited, before, change, rows, guide, output_type)
        return MediffusionCounterfactualPipelineOutput(
            images=self._to_images(edited, output_type),
            null_images=self._to_images(null, output_type),
            originals=self._to_images(original, output_type),
            difference=self._to_difference(edited - original, output_type),
            null_difference=self._to_difference(edited - null, output_type),
            probabilities_before=scores[0],
            probabilities_after=scores[1],
            probabilities_null=scores[2],
            label_names=self.label_names,
            image_size=self.image_size,
            guidance_scales=scores_to_output(result.guidance_scales, output_type),
            strengths=scores_to_output(result.strengths, output_type),
            reached=None if result.reached is None else result.reached.cpu().numpy(),
            **fields,
        )

    def _controls(
        self: Any,
        original: torch.Tensor,
        edited: torch.Tensor,
        latents: torch.Tensor,
        latent_change: torch.Tensor,
        rows: EditRows,
        external: ExternalClassifier | None,
        output_type: str,
    ) -> dict[str, Any]:
        """Fields of the output: the plain gradient and noise at each counterfactual's size (see `controls`).

        The gradient climbs in latent space, which costs a few encoder passes of the U-Net and one decoding.
        """
        originals, counterfactuals = denormalize(original), denormalize(edited)
        l1 = (counterfactuals - originals).abs().flatten(1).mean(1)

        def log_probability(changed: torch.Tensor) -> torch.Tensor:
            logits = self.unet(changed, 0, return_sample=False).logits if external is None else None
            if logits is None:
                logits = external(self.decode_latents(changed))  # type: ignore[misc]
            return rows.target.clone().log_prob(logits.float())

        mask = 1.0 if rows.mask is None else rows.mask
        pushed = ascend_log_probability(latents, latent_change, log_probability, mask=mask)
        # What the autoencoder alone changes is no part of the gradient.
        direction = self.decode_latents(pushed) - self.decode_latents(latents)
        generator = torch.Generator().manual_seed(_NOISE_SEED)
        pictures = {
            "counterfactual": counterfactuals,
            "plain_gradient": change_by(originals, direction.float(), l1),
            "random_noise": torch.cat(
                [
                    random_noise_control(image[None], size[None], generator.manual_seed(_NOISE_SEED))
                    for image, size in zip(originals, l1, strict=True)
                ]
            ),
        }
        made: dict[str, Any] = {"l1": scores_to_output(l1, output_type)}
        shares = []
        for name, images in pictures.items():
            shares.append(torch.from_numpy(high_frequency_share((images - originals).cpu().numpy())))
            if name != "counterfactual":
                classified = self.classify_latents(self.encode_pixels(normalize(images)))
                probabilities = self.logits_to_probabilities(classified)
                made[f"{name}_images"] = self._to_images(normalize(images), output_type)
                made[f"{name}_probabilities"] = scores_to_output(probabilities, output_type)
        made["high_frequency_shares"] = scores_to_output(torch.stack(shares, dim=1), output_type)
        return made

    def _to_images(self: Any, pictures: torch.Tensor, output_type: str) -> Any:
        """Pictures in the asked-for type; latents pass unchanged."""
        return pictures if output_type == "latent" else self.image_processor.postprocess(pictures, output_type)

    def _to_difference(self, difference: torch.Tensor, output_type: str) -> Any:
        """A signed difference in units of the intensity range (half of the model's range), or of latents."""
        if output_type == "latent":
            return difference
        difference = difference / 2
        return difference if output_type == "pt" else difference.cpu().permute(0, 2, 3, 1).numpy()
