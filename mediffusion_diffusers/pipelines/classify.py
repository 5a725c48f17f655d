"""Classify images with the joint model (paper Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor

from ..guidance import plain_scale
from ..image_processor import ImageInput
from ..models.label_calibration import calibrate_logits, calibrate_thresholds
from ..options import Range, check_number
from .base import Generators, MediffusionPipeline, check_output_type, check_switch, scores_to_output
from .call_state import changed_by_callback
from .outputs import MediffusionClassifyPipelineOutput


EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from PIL import Image
        >>> from mediffusion_diffusers import MediffusionClassifyPipeline

        >>> pipe = MediffusionClassifyPipeline.from_pretrained("org/mediffusion-cxr")
        >>> output = pipe([Image.open("a.png"), Image.open("b.png")])
        >>> output.labels, output.probabilities
        ```
"""


class MediffusionClassifyPipeline(MediffusionPipeline):
    r"""Probabilities for images, from the encoder half of the joint model.

    The image is encoded to the posterior's mode and classified without noise at t = 0: deterministic, one encoder
    pass. Optionally logits are averaged over several timesteps and noises.

    Args:
        vae: autoencoder of the checkpoint.
        unet: joint model.
        scheduler: DDPM or DDIM; its `alphas_cumprod` scale the optional noise.
    """

    _callback_tensor_inputs = ["latents", "logits"]

    def check_inputs(
        self,
        timesteps: Sequence[int],
        num_noise_samples: int,
        thresholds: float | Sequence[float] | None,
        batch_size: int,
        output_type: str,
        calibrated: bool = False,
    ) -> None:
        """Refuse arguments that cannot work, before any work is done."""
        last = self.scheduler.config.num_train_timesteps - 1
        if not timesteps:
            raise ValueError("`timesteps` must name at least one timestep, but is empty.")
        for timestep in timesteps:
            check_number("timesteps", timestep, Range(at_least=0, at_most=last), whole=True)
        check_number("num_noise_samples", num_noise_samples, Range(at_least=0), whole=True)
        check_number("batch_size", batch_size, Range(at_least=1), whole=True)
        num_labels = self.unet.config.num_labels
        if isinstance(thresholds, (list, tuple)) and len(thresholds) != num_labels:
            raise ValueError(
                f"`thresholds` must be one number in (0, 1) or {num_labels} of them, one per label, but got "
                f"{thresholds}."
            )
        each = thresholds if isinstance(thresholds, (list, tuple)) else [] if thresholds is None else [thresholds]
        for threshold in each:
            check_number("thresholds", threshold, Range(above=0, below=1))
        check_output_type(output_type, ("np", "pt"))
        check_switch("calibrated", calibrated)
        if calibrated and self.unet.config.label_calibration is None:
            raise ValueError(
                "`calibrated=True` needs a calibration, but this checkpoint stores none. Fit one with `mediffusion "
                "calibrate-probabilities`, or leave `calibrated` out."
            )

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        images: ImageInput,
        timesteps: int | Sequence[int] = 0,
        num_noise_samples: int = 0,
        thresholds: float | Sequence[float] | None = None,
        batch_size: int = 16,
        generator: Generators = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("logits",),
        calibrated: bool = False,
    ) -> MediffusionClassifyPipelineOutput | tuple[Any, ...]:
        r"""Classify images.

        Args:
            images: one image or a list: PIL of any mode, arrays or tensors in [0, 1], grey or colour, of any size.
            timesteps: where the classifier is asked; several are averaged (on logits).
            num_noise_samples: noises per image and timestep above 0; 0 asks at clean latents.
            thresholds: probability from which a label counts as present, in (0, 1), one for all or one per label;
                by default the checkpoint's `label_thresholds`, else 0.5. Unused for one class per image.
            batch_size: images per forward pass.
            generator: source of the noises, one or one per image.
            output_type: `"np"` or `"pt"`, for probabilities and logits.
            return_dict: return an output object rather than a tuple of its fields.
            callback_on_step_end: called after each batch as `callback(pipe, step, timestep, kwargs)`; it returns what
                it changed of `kwargs`, or nothing.
            callback_on_step_end_tensor_inputs: what it gets in `kwargs`: `"latents"`, `"logits"`.
            calibrated: correct logits and probabilities by the checkpoint's `label_calibration`. Its thresholds move
                along, so that no label changes; given `thresholds` are of calibrated probabilities.

        Examples:

        Returns:
            [`MediffusionClassifyPipelineOutput`].

        Raises:
            ValueError: for images or arguments that cannot be used.
        """
        # 1. Check arguments
        self.check_components()
        thresholds, given = plain_scale(thresholds), plain_scale(timesteps)
        chosen: list[int] = list(given) if isinstance(given, (list, tuple, range)) else [given]
        self.check_inputs(chosen, num_noise_samples, thresholds, batch_size, output_type, calibrated)
        self.check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        check_switch("return_dict", return_dict)
        pixels = self.image_processor.preprocess(images, *self.image_size)
        self.check_generator(generator, len(pixels))

        # 2. Classify batch by batch
        logits = []
        starts = range(0, len(pixels), batch_size)
        with self._running() as state, self.progress_bar(total=len(starts)) as progress_bar:
            state.num_timesteps = len(starts)
            for step, start in enumerate(starts):
                latents = self.encode_pixels(pixels[start : start + batch_size])
                batch_generator = generator[start : start + batch_size] if isinstance(generator, list) else generator
                batch_logits = self._average_logits(latents, chosen, num_noise_samples, batch_generator)
                tensors = {"latents": latents, "logits": batch_logits}
                names = callback_on_step_end_tensor_inputs
                changed = changed_by_callback(callback_on_step_end, self, step, chosen[-1], tensors, names)
                logits.append(changed["logits"])
                progress_bar.update()

        # 3. Probabilities and labels
        all_logits = torch.cat(logits)
        if calibrated:
            all_logits = calibrate_logits(all_logits, self.unet.config.label_calibration)
        probabilities = self.logits_to_probabilities(all_logits)
        used_thresholds = self._resolve_thresholds(thresholds, calibrated)
        output = MediffusionClassifyPipelineOutput(
            probabilities=scores_to_output(probabilities, output_type),
            logits=scores_to_output(all_logits, output_type),
            labels=self._labels(probabilities, used_thresholds),
            label_names=self.label_names,
            thresholds=used_thresholds,
            image_size=self.image_size,
        )
        return output if return_dict else output.to_tuple()

    def _average_logits(
        self, latents: torch.Tensor, timesteps: Sequence[int], num_noise_samples: int, generator: Generators
    ) -> torch.Tensor:
        """Mean logits over timesteps and noises, shape `(batch, num_labels)`."""
        logits = []
        scheduler = self.clone_scheduler()  # `add_noise` moves its tables to the latents' device
        for timestep in timesteps:
            for _ in range(max(num_noise_samples, 1) if timestep > 0 else 1):
                sample = latents
                if num_noise_samples > 0 and timestep > 0:
                    noise = randn_tensor(latents.shape, generator, latents.device, latents.dtype)
                    sample = scheduler.add_noise(latents, noise, torch.tensor([timestep], device=latents.device))
                logits.append(self.classify_latents(sample, timestep))
        return torch.stack(logits).mean(dim=0)

    def _resolve_thresholds(self, thresholds: float | Sequence[float] | None, calibrated: bool) -> list[float]:
        """The argument, else the checkpoint's thresholds, else 0.5, one per label; the latter two move with it."""
        chosen = (self.unet.config.label_thresholds or 0.5) if thresholds is None else thresholds
        if isinstance(chosen, (int, float)):
            chosen = [chosen] * self.unet.config.num_labels
        if calibrated and thresholds is None:
            return calibrate_thresholds(chosen, self.unet.config.label_calibration)
        return [float(threshold) for threshold in chosen]

    def _labels(self, probabilities: torch.Tensor, thresholds: Sequence[float]) -> list[list[str]]:
        """Names of the labels of each image."""
        names = self.label_names
        if self.unet.config.problem_type == "single_label_classification":
            return [[names[index]] for index in probabilities.argmax(dim=1).tolist()]
        present = probabilities >= torch.tensor(thresholds, device=probabilities.device)
        return [[name for name, is_present in zip(names, row, strict=True) if is_present] for row in present.tolist()]
