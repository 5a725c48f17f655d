"""Classify images with the joint model (paper Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DiffusionPipeline
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor

from ..guidance import sampling_mode
from ..image_processor import ImageInput
from ..models import JointUNet2DModel, SpaceToDepthAutoencoder
from .base import Generators, MediffusionPipelineMixin, check_output_type, scores_to_output
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


class MediffusionClassifyPipeline(MediffusionPipelineMixin, DiffusionPipeline):
    r"""Probabilities for images, from the encoder half of the joint model.

    The image is encoded to the posterior's mode and classified without noise at t = 0: deterministic, one encoder
    pass. Optionally logits are averaged over several timesteps and noises.

    Args:
        vae: autoencoder of the checkpoint.
        unet: joint model.
        scheduler: DDPM or DDIM; its `alphas_cumprod` scale the optional noise.
    """

    _callback_tensor_inputs = ["latents", "logits"]

    def __init__(
        self,
        vae: AutoencoderKL | SpaceToDepthAutoencoder,
        unet: JointUNet2DModel,
        scheduler: DDIMScheduler | DDPMScheduler,
    ):
        super().__init__()
        self._register(vae, unet, scheduler)

    def check_inputs(
        self,
        timesteps: Sequence[int],
        num_noise_samples: int,
        thresholds: float | Sequence[float] | None,
        batch_size: int,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Refuse arguments that cannot work, before any work is done."""
        last = self.scheduler.config.num_train_timesteps - 1
        if not timesteps or any(not 0 <= timestep <= last for timestep in timesteps):
            raise ValueError(f"`timesteps` must lie in [0, {last}], but got {list(timesteps)}.")
        if num_noise_samples < 0:
            raise ValueError(f"`num_noise_samples` must be at least 0 (no noise), but got {num_noise_samples}.")
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, but got {batch_size}.")
        num_labels = self.unet.config.num_labels
        if thresholds is not None:
            values = [thresholds] * num_labels if isinstance(thresholds, (int, float)) else list(thresholds)
            if len(values) != num_labels or not all(0 < value < 1 for value in values):
                raise ValueError(
                    f"`thresholds` must be one number in (0, 1) or {num_labels} of them, one per label, but got "
                    f"{thresholds}."
                )
        check_output_type(output_type, ("np", "pt"))
        self.check_callback_inputs(callback_on_step_end_tensor_inputs)

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
            callback_on_step_end: called after each batch as `callback(pipe, step, timestep, kwargs)`.
            callback_on_step_end_tensor_inputs: what it gets in `kwargs`: `"latents"`, `"logits"`.

        Examples:

        Returns:
            [`MediffusionClassifyPipelineOutput`].

        Raises:
            ValueError: for images or arguments that cannot be used.
        """
        # 1. Check arguments
        timesteps = [int(timesteps)] if isinstance(timesteps, Integral) else list(timesteps)  # type: ignore[arg-type]
        self.check_inputs(
            timesteps, num_noise_samples, thresholds, batch_size, output_type, callback_on_step_end_tensor_inputs
        )
        pixels = self.image_processor.preprocess(images, *self.image_size)
        self.check_generator(generator, len(pixels))

        # 2. Classify batch by batch
        logits = []
        starts = range(0, len(pixels), batch_size)
        self._num_timesteps = len(starts)
        with sampling_mode(self.vae, self.unet), self.progress_bar(total=len(starts)) as progress_bar:
            for step, start in enumerate(starts):
                latents = self.encode_pixels(pixels[start : start + batch_size])
                batch_generator = generator[start : start + batch_size] if isinstance(generator, list) else generator
                batch_logits = self._average_logits(latents, timesteps, num_noise_samples, batch_generator)
                if callback_on_step_end is not None:
                    offered = {"latents": latents, "logits": batch_logits}
                    kwargs = {name: offered[name] for name in callback_on_step_end_tensor_inputs}
                    batch_logits = callback_on_step_end(self, step, timesteps[-1], kwargs).pop("logits", batch_logits)
                logits.append(batch_logits)
                progress_bar.update()
        self.maybe_free_model_hooks()

        # 3. Probabilities and labels
        all_logits = torch.cat(logits)
        probabilities = self.logits_to_probabilities(all_logits)
        used_thresholds = self._resolve_thresholds(thresholds)
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

    def _resolve_thresholds(self, thresholds: float | Sequence[float] | None) -> list[float]:
        """The argument, else the checkpoint's thresholds, else 0.5, one per label."""
        if thresholds is None:
            thresholds = self.unet.config.label_thresholds or 0.5
        if isinstance(thresholds, (int, float)):
            return [float(thresholds)] * self.unet.config.num_labels
        return [float(threshold) for threshold in thresholds]

    def _labels(self, probabilities: torch.Tensor, thresholds: Sequence[float]) -> list[list[str]]:
        """Names of the labels of each image."""
        names = self.label_names
        if self.unet.config.problem_type == "single_label_classification":
            return [[names[index]] for index in probabilities.argmax(dim=1).tolist()]
        present = probabilities >= torch.tensor(thresholds, device=probabilities.device)
        return [[name for name, is_present in zip(names, row, strict=True) if is_present] for row in present.tolist()]
