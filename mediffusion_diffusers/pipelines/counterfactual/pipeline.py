"""Explain a decision by the image that would change it (paper Sec. 3.5, App. F)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DiffusionPipeline
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor

from ...guidance import (
    ExternalClassifier,
    GuidanceScale,
    Labels,
    build_target,
    count_label_rows,
    plain_scale,
    sampling_mode,
    scales_of_rows,
    values_of_scale,
)
from ...image_processor import ImageInput
from ...latents import decode_latents
from ...models import JointUNet2DModel, SpaceToDepthAutoencoder
from ...regions import prepare_region, region_of_change
from ..base import Generators, clone_generator, own_generator
from ..counterfactual_inputs import CounterfactualInputsMixin, count_rows
from ..counterfactual_results import EditResult
from ..counterfactual_sampling import CounterfactualSamplingMixin, EditRows, Route, Start
from ..guidance_search import GuidanceSearchMixin, SearchBounds
from ..outputs import MediffusionCounterfactualPipelineOutput


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


class MediffusionCounterfactualPipeline(
    CounterfactualInputsMixin, CounterfactualSamplingMixin, GuidanceSearchMixin, DiffusionPipeline
):
    r"""Counterfactual images: the same image with a finding removed or added, as the model sees it.

    The image is encoded, brought to a partial noise level and denoised under guidance by the model's own classifier.
    Beside it stands the *null edit*: the same start and steps without guidance. It shows what changes this model's
    score; it is not causal, not anatomy and not disease progression.

    Args:
        vae: autoencoder of the checkpoint.
        unet: joint model.
        scheduler: DDIM (deterministic, few steps), DPM-Solver++, or DDPM (the paper's procedure, with
            `start="noise"`).
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

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        image: ImageInput,
        towards: Labels | Sequence[Labels] | None = None,
        away: Labels | Sequence[Labels] | None = None,
        strength: float | None = None,
        guidance_scale: GuidanceScale | None = None,
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
        start_snr: float | None = None,
        follow_inversion: bool | None = None,
        hold: float = 0.0,
        target_probability: float | None = None,
        max_guidance_scale: float | None = None,
        max_strength: float | None = None,
        mask: Any = None,
        classifier: Any = None,
        controls: bool = True,
        fade_guidance: bool | None = None,
    ) -> MediffusionCounterfactualPipelineOutput | tuple[Any, ...]:
        r"""Edit images until the model would decide otherwise.

        Args:
            image: one image or a list: PIL of any mode, arrays or tensors in [0, 1], grey or colour, of any size.
            towards: labels to add: a name or index, several of them (for all images), or a list of lists: one per
                image, or several per image, which then share its inversion.
            away: labels to remove, likewise. `towards` and `away` may be combined.
            strength: how far to go back in the noise schedule, in (0, 1]; t = strength * 1000 (paper: 0.05 to 0.3).
            guidance_scale: scale s of Eq. 2, at least 0; a list gives one per counterfactual, so that several for one
                image make a sweep (Fig. 7); `{"towards": ..., "away": ...}` gives one per direction, of which the
                smaller holds for a counterfactual with both. It belongs to a checkpoint (the paper's 500 and 200 to
                its own).
            num_inference_steps: guided steps actually taken from the start to the clean image, whatever the strength
                (unlike diffusers' image-to-image pipelines, which take `strength` times as many).
            start: `"inversion"` climbs to the noise level by deterministic inversion, which keeps the image's
                identity; `"noise"` adds random noise, as the paper does.
            guidance_mode: where the classifier is asked: `"zt"`, `"x0_detached"`, `"x0"` (the paper's authors) or
                `"external"` (App. H); see [`~mediffusion_diffusers.guidance.predict_guided`].
            num_inversion_steps: steps of the inversion, by default `num_inference_steps`.
            solver_order: 2 (Adams-Bashforth, few steps suffice) or 1 (plain DDIM); unused with other schedulers.
            eta: share of fresh noise of DDIM in [0, 1]; above 0 it implies first order and needs `start="noise"`.
            generator: for `start="noise"`: one, or one per image.
            noise: for `start="noise"`: noise of the latents' shape instead of a generator's.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict: return an output object rather than a tuple of its fields.
            callback_on_step_end: called after each step as `callback(pipe, step, timestep, kwargs)`; with
                `mask="auto"` in both edits, the one that finds the region and the one within it.
            callback_on_step_end_tensor_inputs: what it gets in `kwargs`: `"latents"`, `"null_latents"`.
            start_snr: the noise level by its signal-to-noise ratio instead of `strength`; it means the same for other
                noise schedules.
            follow_inversion: keep to the inversion's own path on the way back and integrate the deviation alone. The
                null edit is then the encoded image itself and costs nothing, and fewer steps suffice. Needs DDIM and
                as many steps up as down.
            hold: weight of the penalty on changes of the logits that are not targeted; 0 lets them go. The penalty
                is multiplied by the scale, and stiff: begin with 0.3 / scale, and take more steps for more.
            target_probability: find for each image the smallest scale, then strength, that brings every label in
                `away` to this probability or below, and every label in `towards` to its complement or above (0.1 and
                0.9 mean the same). `guidance_scale` and `strength` are where the search begins.
            max_guidance_scale: largest scale of the search, by default 32 times the first.
            max_strength: largest strength of the search, by default `strength`: only the scale is searched.
            mask: where the image may change: a mask, boxes, or one of them per counterfactual (see
                [`~mediffusion_diffusers.regions.prepare_region`]); `"auto"`: where an edit without a mask changes
                most; or `"everywhere"`. Outside, the latents stay those of the null edit, bit for bit.
            classifier: an image classifier of transformers, or an [`ExternalClassifier`] with its own preprocessing,
                whose probabilities are reported. With `guidance_mode="external"` it guides, and `towards` and `away`
                name its labels.
            controls: also change each image as much by the plain gradient and by noise, and report both.
            fade_guidance: let the push fade within each step as the target becomes certain, instead of holding it as
                Eq. 2 does. Large scales then overshoot far less in few steps. Needs DDIM and `eta=0`; a scale
                calibrated without it is too small with it.

        Where an argument is `None` the checkpoint's `guidance_defaults` hold, then strength 0.3, scale 10, 10 steps,
        inversion, `"zt"`, everywhere.

        Examples:

        Returns:
            [`MediffusionCounterfactualPipelineOutput`].

        Raises:
            ValueError: for images or arguments that cannot be used.
        """
        # 1. Check arguments
        if start_snr is not None:
            if strength is not None:
                raise ValueError("`strength` and `start_snr` both choose the noise level: give one of them.")
            strength = self.strength_of_snr(start_snr)
        settings = self.resolve_settings(
            strength=strength,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            start=start,
            guidance_mode=guidance_mode,
            follow_inversion=follow_inversion,
            mask=mask,
            fade_guidance=fade_guidance,
        )
        external = _as_external(classifier)
        pixels = self.image_processor.preprocess(image, *self.image_size)
        num_images = len(pixels)
        given = settings["guidance_scale"] = plain_scale(settings["guidance_scale"])
        is_sweep = isinstance(given, Sequence) and not isinstance(given, str)
        num_rows = count_rows(
            num_images,
            towards=count_label_rows(towards),
            away=count_label_rows(away),
            guidance_scale=len(given) if is_sweep else None,
        )
        self._check_strength(settings["strength"])
        max_timestep = self._timestep_of(settings["strength"])
        self.check_inputs(
            settings,
            values_of_scale(given),
            max_timestep,
            num_inversion_steps,
            eta,
            solver_order,
            hold,
            generator,
            noise,
            num_images,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        guide = external if settings["guidance_mode"] == "external" else None
        if guide is None and settings["guidance_mode"] == "external":
            raise ValueError("`guidance_mode='external'` needs a `classifier`, an image classifier of transformers.")
        judge = self.unet.config if guide is None else guide
        label_names = self.label_names if guide is None else guide.label_names
        target = build_target(towards, away, num_rows, label_names, judge.problem_type, hold)
        scales = scales_of_rows(given, target.direction)
        self.check_search(settings, target_probability, max_guidance_scale, max_strength, scales)
        num_steps = settings["num_inference_steps"]
        settings["num_inversion_steps"] = (num_inversion_steps or num_steps) * (settings["start"] == "inversion")
        settings["follow_inversion"] = self._can_follow(settings, follow_inversion)
        settings["fade_guidance"] = self._can_fade(settings, eta, fade_guidance)
        settings["solver_order"] = solver_order = 1 if eta > 0 else solver_order
        settings.update(eta=eta, hold=hold)
        route = Route(
            max_timestep,
            num_steps,
            settings["num_inversion_steps"],
            settings["follow_inversion"],
            solver_order,
            eta,
            settings["guidance_mode"],
            None if guide is None else lambda latents: guide(decode_latents(self.vae, latents)),
            settings["fade_guidance"],
        )
        mask, region = settings["mask"], None
        settings["mask"] = mask if isinstance(mask, str) else "given"
        is_region_found = settings["mask"] == "auto"
        if settings["mask"] == "given":
            region = prepare_region(mask, num_rows, self.image_size, self.latent_size)
        self._interrupt = False

        with sampling_mode(self.vae, self.unet, *([] if external is None else [external])):
            # 2. Encode, deterministically
            device = self._execution_device
            clean_latents = self.encode_pixels(pixels)
            image_index = torch.arange(num_images, device=device).repeat_interleave(num_rows // num_images)
            rows = EditRows(image_index, target, None if region is None else region.to(clean_latents))

            # 3. Choose the way to a noise level: one start per strength, the same for all edits
            if settings["start"] == "noise":
                generator = own_generator(generator)
                if noise is None:
                    noise = randn_tensor(clean_latents.shape, generator, clean_latents.device, clean_latents.dtype)
                if num_rows != num_images or target_probability is not None or is_region_found:
                    generator = _one_per_image(generator, num_images)

            def go(route: Route, images: torch.Tensor) -> Start:
                if settings["start"] == "inversion":
                    return self._invert(clean_latents[images], route)
                return self._add_noise(clean_latents[images], noise.to(device)[images], route)  # type: ignore

            bounds = SearchBounds(
                min(scales),
                max_guidance_scale or 32 * min(scales),
                settings["strength"],
                max_strength or settings["strength"],
            )

            # 4. Denoise: the counterfactuals under guidance, the null edits from the same start without
            def on_step(step: int, t: int, latents: torch.Tensor, null_latents: torch.Tensor) -> Any:
                offered = {"latents": latents, "null_latents": null_latents}
                kwargs = {name: offered[name] for name in callback_on_step_end_tensor_inputs}
                changed = callback_on_step_end(self, step, t, kwargs)  # type: ignore[misc]
                return changed.pop("latents", latents), changed.pop("null_latents", null_latents)

            start_latents = None if target_probability is not None else go(route, torch.arange(num_images))

            def edit(rows: EditRows) -> EditResult:
                # A second edit, within the region that the first one found, gets the same step noise.
                noises = clone_generator(generator) if is_region_found else generator
                if target_probability is not None:
                    return self._search(go, rows, route, bounds, target_probability, noises, output_type, guide)
                assert start_latents is not None
                self._guidance_scale = torch.tensor(scales).to(clean_latents) if len(set(scales)) > 1 else scales[0]
                step_callback = None if callback_on_step_end is None else on_step
                latents, null_latents = self._edit(start_latents, rows, route, noises, step_callback)
                return EditResult.of_one_strength(latents, null_latents, rows, scales, settings["strength"])

            result = edit(rows)
            if is_region_found:
                region = region_of_change(result.latents - result.null_latents[result.null_index])
                rows = EditRows(image_index, target, region)
                result = edit(rows)

            # 5. Decode, classify the pictures that the user gets, make the controls, take the differences
            if target_probability is not None:
                settings["target_probability"] = target_probability
            output = self._assemble(
                pixels[image_index.to(pixels.device)],
                clean_latents,
                rows,
                result,
                output_type,
                external,
                guide,
                controls,
                timesteps=self._descending_timesteps(route),
                settings=settings,
                region=None if region is None else region.float().cpu().numpy(),
            )
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()

    def _can_follow(self, settings: dict[str, Any], wanted: bool | None) -> bool:
        """Whether the way back may keep to the inversion's path; refuses an explicit wish that cannot be met."""
        obstacles = {
            "`start='inversion'`": settings["start"] != "inversion",
            "a DDIMScheduler": not isinstance(self.scheduler, DDIMScheduler),
            "`num_inversion_steps` equal to `num_inference_steps`": (
                settings["num_inversion_steps"] != settings["num_inference_steps"]
            ),
        }
        missing = [need for need, is_missing in obstacles.items() if is_missing]
        if wanted and missing:
            raise ValueError(f"`follow_inversion` needs {' and '.join(missing)}.")
        return bool(settings["follow_inversion"]) and not missing

    def _can_fade(self, settings: dict[str, Any], eta: float, wanted: bool | None) -> bool:
        """Whether the push may fade within a step; refuses an explicit wish that cannot be met."""
        can = isinstance(self.scheduler, DDIMScheduler) and eta == 0
        if wanted and not can:
            raise ValueError("`fade_guidance` needs a DDIMScheduler and `eta=0`, whose steps are known in advance.")
        return bool(settings["fade_guidance"]) and can


def _as_external(classifier: Any) -> ExternalClassifier | None:
    if classifier is None or isinstance(classifier, ExternalClassifier):
        return classifier
    return ExternalClassifier(classifier)


def _one_per_image(generator: Generators, num_images: int) -> list[torch.Generator]:
    """A generator per image, so that every edit of an image gets the same step noise."""
    if isinstance(generator, list):
        return generator
    seeds = torch.randint(2**63 - 1, (num_images,), generator=generator, device=generator.device)  # type: ignore
    return [torch.Generator(generator.device).manual_seed(int(seed)) for seed in seeds]  # type: ignore[union-attr]
