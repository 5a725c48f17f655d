"""Generate images of wanted findings with the joint model (paper Sec. 4.3, App. G)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor

from ..guidance import (
    OWN_GUIDANCE_MODES,
    GuidanceTarget,
    Labels,
    build_target,
    plain_scale,
    predict_guided,
    scale_for,
)
from ..options import Range, check_number
from .base import (
    Generators,
    MediffusionPipeline,
    check_latents,
    check_output_type,
    check_results,
    check_switch,
    clone_generator,
    own_generator,
    scheduler_step_kwargs,
    scores_to_output,
)
from .call_state import CallState, changed_by_callback
from .outputs import MediffusionGuidedPipelineOutput


EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from mediffusion_diffusers import MediffusionGuidedPipeline

        >>> pipe = MediffusionGuidedPipeline.from_pretrained("org/mediffusion-cxr")
        >>> output = pipe(towards="Cardiomegaly", guidance_scale=20.0, generator=torch.manual_seed(0))
        >>> output.images[0].save("cardiomegaly.png")
        ```
"""


class MediffusionGuidedPipeline(MediffusionPipeline):
    r"""Images from noise, steered towards or away from labels by the model's own classifier.

    Args:
        vae: autoencoder of the checkpoint.
        unet: joint model.
        scheduler: DDPM or DDIM.
    """

    _callback_tensor_inputs = ["latents"]

    def check_inputs(
        self,
        has_target: bool,
        guidance_scales: Sequence[float],
        num_inference_steps: int,
        num_images: int,
        eta: float,
        generator: Generators,
        latents: torch.Tensor | None,
        guidance_mode: str,
        output_type: str,
    ) -> None:
        """Refuse arguments that cannot work, before any work is done."""
        check_number("num_images", num_images, Range(at_least=1), whole=True)
        num_train_timesteps = self.scheduler.config.num_train_timesteps
        steps = Range(at_least=1, at_most=num_train_timesteps)
        check_number("num_inference_steps", num_inference_steps, steps, whole=True)
        check_number("eta", eta, Range(at_least=0, at_most=1))
        if not guidance_scales:
            raise ValueError("`guidance_scale` as a list must hold at least one scale, but is empty.")
        for scale in guidance_scales:
            check_number("guidance_scale", scale, Range(at_least=0))
        if not has_target and any(scale > 0 for scale in guidance_scales):
            raise ValueError(
                "`guidance_scale` above 0 needs a label in `towards` or `away`. Known labels: "
                f"{', '.join(self.label_names)}."
            )
        if guidance_mode not in OWN_GUIDANCE_MODES:
            raise ValueError(f"`guidance_mode` must be one of {OWN_GUIDANCE_MODES}, but got {guidance_mode!r}.")
        if latents is not None:
            check_latents("latents", latents, (num_images, self.unet.config.in_channels, *self.latent_size))
        self.check_generator(generator, num_images)
        check_output_type(output_type)

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        towards: Labels | Sequence[Labels] | None = None,
        away: Labels | Sequence[Labels] | None = None,
        num_images: int = 1,
        num_inference_steps: int = 50,
        guidance_scale: float | Sequence[float] | None = None,
        guidance_mode: str | None = None,
        eta: float = 0.0,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> MediffusionGuidedPipelineOutput | tuple[Any, ...]:
        r"""Generate images.

        Args:
            towards: labels to show: a name or index, several of them (for all images), or a list of lists, one per
                image. Without any label in `towards` and `away` generation is unguided.
            away: labels to avoid, likewise.
            num_images: how many images to generate at once.
            num_inference_steps: denoising steps over the whole schedule.
            guidance_scale: scale s of Eq. 2, at least 0; 0 is the plain scheduler loop. A list generates the same
                noise at each scale (Fig. 7). By default the checkpoint's, else 10; scales belong to a checkpoint
                (the paper's 300 to its own).
            guidance_mode: where the classifier is asked: `"zt"`, `"x0_detached"` or `"x0"` (the paper's authors);
                see [`~mediffusion_diffusers.guidance.predict_guided`]. By default the checkpoint's, else `"zt"`.
            eta: share of fresh noise of DDIM in [0, 1]; ignored by DDPM.
            generator: one, or one per image.
            latents: starting noise of shape `(num_images, latent_channels, *latent_size)`.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict: return an output object rather than a tuple of its fields.
            callback_on_step_end: called after each step as `callback(pipe, step, timestep, kwargs)`; it returns
                what it changed of `kwargs`, or nothing.
            callback_on_step_end_tensor_inputs: what it gets in `kwargs`: `"latents"`.

        Examples:

        Returns:
            [`MediffusionGuidedPipelineOutput`].

        Raises:
            ValueError: for arguments that cannot be used.
        """
        # 1. Check arguments
        self.check_components()
        guidance_scale = plain_scale(guidance_scale)  # numbers of Python
        is_sweep = isinstance(guidance_scale, (list, tuple))
        names = [name for name, labels in (("towards", towards), ("away", away)) if labels is not None]
        has_target = bool(names)
        scales, guidance_mode = self._resolve_guidance(guidance_scale, guidance_mode, names)
        given = (num_inference_steps, num_images, eta, generator, latents, guidance_mode, output_type)
        self.check_inputs(has_target, scales, *given)
        self.check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        check_switch("return_dict", return_dict)
        target, device = None, self._execution_device
        if has_target:
            problem_type = self.unet.config.problem_type
            target = build_target(towards, away, num_images, self.label_names, problem_type).to(device)

        def on_step(step: int, t: int, latents: torch.Tensor) -> torch.Tensor:
            tensors, names = {"latents": latents}, callback_on_step_end_tensor_inputs
            return changed_by_callback(callback_on_step_end, self, step, t, tensors, names)["latents"]

        # 2. Prepare the starting noise, the same for every scale
        shape = (num_images, self.unet.config.in_channels, *self.latent_size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        noise = latents.to(device=device, dtype=self.unet.dtype)
        if is_sweep:
            generator = own_generator(generator)
        images, probabilities = list[Any](), list[torch.Tensor]()
        with self._running() as state:
            for index, scale in enumerate(scales):
                scheduler = self.clone_scheduler()
                scheduler.set_timesteps(num_inference_steps)  # on the CPU: no step waits for a device
                # Every scale gets the same step noise; the last one advances the caller's generator.
                step_generator = generator if index == len(scales) - 1 else clone_generator(generator)
                step_kwargs = scheduler_step_kwargs(scheduler, eta=eta, generator=step_generator)
                state.guidance_scale = scale

                # 3. Denoise
                latents = noise * scheduler.init_noise_sigma
                latents = self._denoise(latents, scheduler, step_kwargs, target, guidance_mode, state, on_step)

                # 4. Decode, and classify what the user gets
                pixels = latents if output_type == "latent" else self.decode_latents(latents)
                check_results((latents, pixels), state.guidance_scale if has_target else 0.0)
                if output_type != "latent":
                    latents = self.encode_pixels(pixels)
                    pixels = self.image_processor.postprocess(pixels, output_type)
                images.append(pixels)
                probabilities.append(self.logits_to_probabilities(self.classify_latents(latents)))

        scores = scores_to_output(torch.stack(probabilities), output_type)
        if is_sweep:
            stack = {"pil": list, "np": np.stack}.get(output_type, torch.stack)
            images = stack(images)  # type: ignore[operator]
        output = MediffusionGuidedPipelineOutput(
            images=images if is_sweep else images[0],
            probabilities=scores if is_sweep else scores[0],
            label_names=self.label_names,
            timesteps=scheduler.timesteps.tolist(),
        )
        return output if return_dict else output.to_tuple()

    def _resolve_guidance(
        self, guidance_scale: Any, guidance_mode: str | None, names: Sequence[str]
    ) -> tuple[list[float], str]:
        """All scales, and the mode: what is given, else the checkpoint's, else 10 and `"zt"`; unguided without labels.

        Args:
            guidance_scale: a number, a list of them, or None.
            guidance_mode: as given.
            names: of `towards` and `away`, those in which labels are named.
        """
        defaults = self.unet.config.guidance_defaults or {}
        if guidance_mode is None:
            guidance_mode = str(defaults.get("guidance_mode", "zt"))
        if guidance_scale is None:
            guidance_scale = scale_for(defaults.get("guidance_scale", 10.0), names) if names else 0.0
        return list(guidance_scale) if isinstance(guidance_scale, (list, tuple)) else [guidance_scale], guidance_mode

    def _denoise(
        self,
        latents: torch.Tensor,
        scheduler: Any,
        step_kwargs: dict[str, Any],
        target: GuidanceTarget | None,
        guidance_mode: str,
        state: CallState,
        on_step: Callable[[int, int, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """From noise to clean latents: each step guided by Eq. 2, unless there is no target or the scale is 0.

        Args:
            latents: noise of the scheduler's first timestep, shape `(num_images, channels, height, width)`.
            scheduler: with its timesteps set.
            step_kwargs: of its `step`.
            target: labels to push, or None.
            guidance_mode: where the classifier is asked.
            state: of the call; its `guidance_scale` is that of the next step.
            on_step: called after each step with its number, its timestep and the latents; returns them.
        """
        for step, t in state.steps(scheduler.timesteps, self.progress_bar):
            model_input = scheduler.scale_model_input(latents, t)
            if target is None or state.guidance_scale == 0:
                model_output = self.unet(model_input, t, return_logits=False).sample
            else:
                place = (scheduler.alphas_cumprod[t], scheduler.config.prediction_type, guidance_mode)
                guided = predict_guided(self.unet, model_input, t, target, state.guidance_scale, *place)
                model_output = guided.model_output
            latents = scheduler.step(model_output, t, latents, **step_kwargs).prev_sample
            latents = on_step(step, int(t), latents)
        return latents
