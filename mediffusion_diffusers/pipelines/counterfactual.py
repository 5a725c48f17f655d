"""Explain a decision by the image that would change it (paper Sec. 3.5, App. F)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DiffusionPipeline
from diffusers.utils import logging, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor

from ..guidance import GUIDANCE_MODES, Labels, build_target, predict_guided, sampling_mode
from ..image_processor import ImageInput
from ..models import JointUNet2DModel, SpaceToDepthAutoencoder
from ..schedulers import MultistepDDIMScheduler, time_grid
from .base import (
    Generators,
    MediffusionPipelineMixin,
    check_number,
    check_output_type,
    clone_generator,
    own_generator,
    scheduler_step_kwargs,
    scores_to_output,
)
from .outputs import MediffusionCounterfactualPipelineOutput


logger = logging.get_logger(__name__)

STARTS = ("inversion", "noise")

# Used where neither the caller nor the checkpoint's `guidance_defaults` says otherwise.
DEFAULT_SETTINGS: dict[str, Any] = {
    "strength": 0.3,
    "guidance_scale": 10.0,
    "num_inference_steps": 10,
    "start": "inversion",
    "guidance_mode": "zt",
}

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from PIL import Image
        >>> from mediffusion_diffusers import MediffusionCounterfactualPipeline

        >>> pipe = MediffusionCounterfactualPipeline.from_pretrained("org/mediffusion-cxr")
        >>> output = pipe(Image.open("chest.png"), away="Cardiomegaly")
        >>> output.images[0].save("without_cardiomegaly.png")
        >>> output.probabilities_before[0], output.probabilities_after[0]
        ```
"""


class MediffusionCounterfactualPipeline(MediffusionPipelineMixin, DiffusionPipeline):
    r"""Counterfactual images: the same image with a finding removed or added, as the model sees it.

    The image is encoded, brought to a partial noise level and denoised under guidance by the model's own classifier.
    Beside it stands the *null edit*: the same start and steps without guidance. It shows what changes this model's
    score; it is not causal, not anatomy and not disease progression.

    Args:
        vae: autoencoder of the checkpoint.
        unet: joint model.
        scheduler: DDIM (deterministic, few steps) or DDPM (the paper's procedure, with `start="noise"`).
    """

    _callback_tensor_inputs = ["latents", "null_latents"]

    def __init__(
        self,
        vae: AutoencoderKL | SpaceToDepthAutoencoder,
        unet: JointUNet2DModel,
        scheduler: DDIMScheduler | DDPMScheduler,
    ):
        super().__init__()
        self._register(vae, unet, scheduler)

    def resolve_settings(self, **arguments: Any) -> dict[str, Any]:
        """Fill arguments that are `None` from the checkpoint's `guidance_defaults`, then from this module's.

        Args:
            arguments: any of `strength`, `guidance_scale`, `num_inference_steps`, `start`, `guidance_mode`.

        Returns:
            All five of them.
        """
        stored = self.unet.config.guidance_defaults or {}
        unknown = sorted(stored.keys() - DEFAULT_SETTINGS.keys())
        if unknown:
            logger.warning(f"The checkpoint's `guidance_defaults` hold {unknown}, which this version does not know.")
        settings = dict(DEFAULT_SETTINGS)
        for source in (stored, arguments):
            settings.update({name: source[name] for name in settings if source.get(name) is not None})
        return settings

    def check_inputs(
        self,
        settings: dict[str, Any],
        num_inversion_steps: int | None,
        eta: float,
        solver_order: int,
        generator: Generators,
        noise: torch.Tensor | None,
        batch_size: int,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Refuse arguments that cannot work, before any work is done."""
        strength, start = settings["strength"], settings["start"]
        for name, value in (("strength", strength), ("guidance_scale", settings["guidance_scale"]), ("eta", eta)):
            check_number(name, value)
        if not 0 < strength <= 1:
            raise ValueError(
                f"`strength` must lie in (0, 1], the share of the noise schedule to go back, but got {strength}. "
                "The paper uses 0.05 to 0.3."
            )
        if not 0 <= settings["guidance_scale"] < math.inf:
            raise ValueError(f"`guidance_scale` must be at least 0 and finite, but got {settings['guidance_scale']}.")
        if start not in STARTS:
            raise ValueError(f"`start` must be one of {STARTS}, but got {start!r}.")
        if settings["guidance_mode"] not in GUIDANCE_MODES:
            raise ValueError(
                f"`guidance_mode` must be one of {GUIDANCE_MODES}, but got {settings['guidance_mode']!r}."
            )
        max_timestep = self._max_timestep(strength)
        for name, steps in (
            ("num_inference_steps", settings["num_inference_steps"]),
            ("num_inversion_steps", num_inversion_steps),
        ):
            if steps is None:
                continue
            check_number(name, steps, whole=True)
            if not 1 <= steps <= max_timestep:
                raise ValueError(
                    f"`{name}` counts the steps between the start and the clean image and must lie in "
                    f"[1, {max_timestep}] at `strength={strength}`, but got {steps}."
                )
        if start == "inversion" and (isinstance(self.scheduler, DDPMScheduler) or eta > 0):
            raise ValueError(
                "`start='inversion'` needs deterministic steps, but the scheduler is DDPM or `eta` is above 0. Use "
                "`start='noise'`, or a DDIMScheduler with `eta=0`."
            )
        if not 0 <= eta <= 1:
            raise ValueError(f"`eta` must lie in [0, 1], but got {eta}.")
        if solver_order not in (1, 2):
            raise ValueError(f"`solver_order` must be 1 (DDIM) or 2 (Adams-Bashforth), but got {solver_order}.")
        expected = (batch_size, self.unet.config.in_channels, *self.latent_size)
        if noise is not None and start != "noise":
            raise ValueError(f"`noise` is for `start='noise'`, but `start` is {start!r}.")
        if noise is not None and tuple(noise.shape) != expected:
            raise ValueError(f"`noise` must have the latents' shape {expected}, but got {tuple(noise.shape)}.")
        self.check_generator(generator, batch_size)
        check_output_type(output_type)
        self.check_callback_inputs(callback_on_step_end_tensor_inputs)

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        image: ImageInput,
        towards: Labels | Sequence[Labels] | None = None,
        away: Labels | Sequence[Labels] | None = None,
        strength: float | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        start: str | None = None,
        guidance_mode: str | None = None,
        num_inversion_steps: int | None = None,
        solver_order: int = 2,
        eta: float = 0.0,
        generator: Generators = None,
        noise: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> MediffusionCounterfactualPipelineOutput | tuple[Any, ...]:
        r"""Edit images until the model would decide otherwise.

        Args:
            image: one image or a list: PIL of any mode, arrays or tensors in [0, 1], grey or colour, of any size.
            towards: labels to add: a name or index, several of them (for all images), or a list of lists, one per
                image.
            away: labels to remove, likewise. `towards` and `away` may be combined.
            strength: how far to go back in the noise schedule, in (0, 1]; t = strength * 1000 (paper: 0.05 to 0.3).
            guidance_scale: scale s of Eq. 2, at least 0. It belongs to a checkpoint (the paper's 500 and 200 to its
                own).
            num_inference_steps: guided steps actually taken from the start to the clean image, whatever the strength
                (unlike diffusers' image-to-image pipelines, which take `strength` times as many).
            start: `"inversion"` climbs to the noise level by deterministic inversion, which keeps the image's
                identity; `"noise"` adds random noise, as the paper does.
            guidance_mode: where the classifier is asked: `"zt"`, `"x0_detached"` or `"x0"` (the paper's authors);
                see [`~mediffusion_diffusers.guidance.predict_guided`].
            num_inversion_steps: steps of the inversion, by default `num_inference_steps`.
            solver_order: 2 (Adams-Bashforth, few steps suffice) or 1 (plain DDIM); unused with DDPM.
            eta: share of fresh noise of DDIM in [0, 1]; above 0 it implies first order and needs `start="noise"`.
            generator: for `start="noise"`: one, or one per image.
            noise: for `start="noise"`: noise of the latents' shape instead of a generator's.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict: return an output object rather than a tuple of its fields.
            callback_on_step_end: called after each step as `callback(pipe, step, timestep, kwargs)`.
            callback_on_step_end_tensor_inputs: what it gets in `kwargs`: `"latents"`, `"null_latents"`.

        Where an argument is `None` the checkpoint's `guidance_defaults` hold, then strength 0.3, scale 10, 10 steps,
        inversion, `"zt"`.

        Examples:

        Returns:
            [`MediffusionCounterfactualPipelineOutput`].

        Raises:
            ValueError: for images or arguments that cannot be used.
        """
        # 1. Check arguments
        settings = self.resolve_settings(
            strength=strength,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            start=start,
            guidance_mode=guidance_mode,
        )
        pixels = self.image_processor.preprocess(image, *self.image_size)
        batch_size = len(pixels)
        self.check_inputs(
            settings,
            num_inversion_steps,
            eta,
            solver_order,
            generator,
            noise,
            batch_size,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        target = build_target(towards, away, batch_size, self.label_names, self.unet.config.problem_type)
        solver_order = 1 if eta > 0 else solver_order
        num_steps = settings["num_inference_steps"]
        num_inversion_steps = num_inversion_steps or num_steps
        max_timestep = self._max_timestep(settings["strength"])
        self._guidance_scale = settings["guidance_scale"]
        self._interrupt = False

        with sampling_mode(self.vae, self.unet):
            # 2. Encode, deterministically
            clean_latents = self.encode_pixels(pixels)

            # 3. Go to the noise level
            if settings["start"] == "inversion":
                latents = self._invert(clean_latents, num_inversion_steps, max_timestep, solver_order)
            else:
                generator = own_generator(generator)
                if noise is None:
                    noise = randn_tensor(clean_latents.shape, generator, clean_latents.device, clean_latents.dtype)
                level = torch.full((batch_size,), max_timestep, device=clean_latents.device)
                latents = self.clone_scheduler().add_noise(clean_latents, noise.to(clean_latents), level)

            # 4. Denoise: the counterfactual under guidance, the null edit from the same start without
            null_latents = latents
            scheduler = self._descending_scheduler(num_steps, max_timestep, solver_order)
            null_scheduler = self._descending_scheduler(num_steps, max_timestep, solver_order)
            step_kwargs = scheduler_step_kwargs(scheduler, eta=eta, generator=generator)
            null_step_kwargs = {**step_kwargs, "generator": clone_generator(generator)}
            self._num_timesteps = len(scheduler.timesteps)
            for step, t in enumerate(self.progress_bar(scheduler.timesteps)):
                if self.interrupt:
                    continue
                if self.guidance_scale == 0:
                    model_output = self.unet(latents, t, return_logits=False).sample
                else:
                    model_output = predict_guided(
                        self.unet,
                        latents,
                        t,
                        target,
                        self.guidance_scale,
                        scheduler.alphas_cumprod[t],
                        scheduler.config.prediction_type,
                        settings["guidance_mode"],
                    ).model_output
                null_output = self.unet(null_latents, t, return_logits=False).sample
                latents = scheduler.step(model_output, t, latents, **step_kwargs).prev_sample
                null_latents = null_scheduler.step(null_output, t, null_latents, **null_step_kwargs).prev_sample
                if callback_on_step_end is not None:
                    offered = {"latents": latents, "null_latents": null_latents}
                    kwargs = {name: offered[name] for name in callback_on_step_end_tensor_inputs}
                    changed = callback_on_step_end(self, step, int(t), kwargs)
                    latents = changed.pop("latents", latents)
                    null_latents = changed.pop("null_latents", null_latents)

            # 5. Decode, and classify the pictures that the user gets
            all_latents = [clean_latents, latents, null_latents]
            if output_type == "latent":
                shown = all_latents
            else:
                shown = [
                    pixels.to(clean_latents.device),
                    self.decode_latents(latents),
                    self.decode_latents(null_latents),
                ]
                all_latents = [clean_latents, *(self.encode_pixels(picture) for picture in shown[1:])]
            before, after, null = (
                scores_to_output(self.logits_to_probabilities(self.classify_latents(z)), output_type)
                for z in all_latents
            )
        self.maybe_free_model_hooks()

        # 6. Pictures and difference maps
        original, counterfactual, null_edit = (picture.float() for picture in shown)
        output = MediffusionCounterfactualPipelineOutput(
            images=self._to_images(counterfactual, output_type),
            null_images=self._to_images(null_edit, output_type),
            originals=self._to_images(original, output_type),
            difference=self._to_difference(counterfactual - original, output_type),
            null_difference=self._to_difference(counterfactual - null_edit, output_type),
            probabilities_before=before,
            probabilities_after=after,
            probabilities_null=null,
            label_names=self.label_names,
            timesteps=scheduler.timesteps.tolist(),
            image_size=self.image_size,
            settings={
                **settings,
                "num_inversion_steps": num_inversion_steps if settings["start"] == "inversion" else 0,
                "solver_order": solver_order,
                "eta": eta,
            },
        )
        return output if return_dict else output.to_tuple()

    def _max_timestep(self, strength: float) -> int:
        """The noise level of a strength, as a timestep."""
        num_train_timesteps = self.scheduler.config.num_train_timesteps
        return min(max(round(strength * num_train_timesteps), 1), num_train_timesteps - 1)

    def _invert(
        self, latents: torch.Tensor, num_inversion_steps: int, max_timestep: int, solver_order: int
    ) -> torch.Tensor:
        """Climb deterministically from clean latents to the noise level."""
        scheduler = MultistepDDIMScheduler.from_config(self.scheduler.config)
        scheduler.set_grid(num_inversion_steps, max_timestep, inverse=True, solver_order=solver_order)
        for t in self.progress_bar(scheduler.timesteps):
            noise_pred = self.unet(latents, t, return_logits=False).sample
            latents = scheduler.step(noise_pred, t, latents).prev_sample
        return latents

    def _descending_scheduler(self, num_inference_steps: int, max_timestep: int, solver_order: int) -> Any:
        """A fresh scheduler for the way down: DDPM at chosen timesteps, or DDIM on our grid."""
        if isinstance(self.scheduler, DDPMScheduler):
            scheduler = self.clone_scheduler()
            scheduler.set_timesteps(timesteps=time_grid(num_inference_steps, max_timestep)[:0:-1].tolist())
        else:
            scheduler = MultistepDDIMScheduler.from_config(self.scheduler.config)
            scheduler.set_grid(num_inference_steps, max_timestep, solver_order=solver_order)
        return scheduler

    def _to_images(self, pictures: torch.Tensor, output_type: str) -> Any:
        """Pictures in the asked-for type; latents pass unchanged."""
        return pictures if output_type == "latent" else self.image_processor.postprocess(pictures, output_type)

    def _to_difference(self, difference: torch.Tensor, output_type: str) -> Any:
        """A signed difference in units of the intensity range (half of the model's range), or of latents."""
        if output_type == "latent":
            return difference
        difference = difference / 2
        return difference if output_type == "pt" else difference.cpu().permute(0, 2, 3, 1).numpy()
