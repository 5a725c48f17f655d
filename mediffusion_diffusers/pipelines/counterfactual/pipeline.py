"""Explain a decision by the image that would change it (paper Sec. 3.5, App. F)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor

from ...guidance import Labels
from ...image_processor import ImageInput
from ...regions import prepare_region
from ..base import (
    Generators,
    MediffusionPipeline,
    check_latents,
    check_output_type,
    check_switch,
    own_generator,
)
from ..call_state import changed_by_callback
from ..outputs import MediffusionCounterfactualPipelineOutput
from .assemble import assemble
from .display import Display
from .editor import Edit, Editor, FollowPath, Sample, Watch, WithinItsRegion
from .judge import ExternalJudge, Judge, OwnJudge, as_external
from .noised_paths import FollowNoisedPaths, NoisedPaths
from .question import Question
from .search import SmallestEdit, check_first_scales
from .settings import CounterfactualSettings, strength_of_snr
from .shorten import ShortenedEdit
from .signature import takes_settings
from .start import AddedNoise, Inversion, Way


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


class MediffusionCounterfactualPipeline(MediffusionPipeline):
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

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    @takes_settings(away="strength", callback_on_step_end_tensor_inputs="start_snr", controls="fade_guidance")
    def __call__(
        self,
        image: ImageInput,
        towards: Labels | Sequence[Labels] | None = None,
        away: Labels | Sequence[Labels] | None = None,
        generator: Generators = None,
        noise: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        classifier: Any = None,
        controls: bool = True,
        **options: Any,
    ) -> MediffusionCounterfactualPipelineOutput | tuple[Any, ...]:
        r"""Edit images until the model would decide otherwise.

        Args:
            image: one image or a list: PIL of any mode, arrays or tensors in [0, 1], grey or colour, of any size.
            towards: labels to add: a name or index, several of them (for all images), or a list of lists: one per
                image, or several per image, which then share its inversion.
            away: labels to remove, likewise. `towards` and `away` may be combined.
            generator: for `start="noise"` and `start="noised_paths"`: one, or one per image. Without one, noised paths
                begin with the same noise in every call.
            noise: for `start="noise"`: noise of the latents' shape instead of a generator's.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict: return an output object rather than a tuple of its fields.
            callback_on_step_end: called after each step as `callback(pipe, step, timestep, kwargs)`; with
                `mask="auto"` in both edits, the one that finds the region and the one within it (noised paths need one
                edit alone). It returns what it changed of `kwargs`, or nothing.
            callback_on_step_end_tensor_inputs: what it gets in `kwargs`: `"latents"`, `"null_latents"`.
            classifier: an image classifier of transformers, or an [`ExternalClassifier`] with its own preprocessing,
                whose probabilities are reported. With `guidance_mode="external"` it guides, and `towards` and `away`
                name its labels.
            controls: also change each image as much by the plain gradient and by noise, and report both.
            {options}

        Where one of {stored} is `None` the checkpoint's `guidance_defaults` hold, then: {defaults}.

        Examples:

        Returns:
            [`MediffusionCounterfactualPipelineOutput`].

        Raises:
            ValueError: for images or arguments that cannot be used.
        """
        # 1. Resolve what is asked
        self.check_components()
        settings = self.resolve_settings(**options)
        outside = as_external(classifier)
        judge = self._judge(settings, outside)
        pixels = self.image_processor.preprocess(image, *self.image_size)
        question = Question.of(len(pixels), towards, away, settings, judge.label_names, judge.problem_type)
        if not isinstance(settings.mask, str):
            question = question.within(prepare_region(settings.mask, len(question), self.image_size, self.latent_size))
        if settings.target_probability is not None:
            check_first_scales(question.scales, settings)
        self.check_inputs(settings, len(pixels), generator, noise, output_type)
        self.check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        check_switch("return_dict", return_dict)
        check_switch("controls", controls)

        def on_step(step: int, t: int, latents: torch.Tensor, null_latents: torch.Tensor) -> Any:
            tensors = {"latents": latents, "null_latents": null_latents}
            names = callback_on_step_end_tensor_inputs
            return tuple(changed_by_callback(callback_on_step_end, self, step, t, tensors, names).values())

        with self._running(*([] if outside is None else [outside])) as state:
            watch = Watch(state, self.progress_bar, None if callback_on_step_end is None else on_step)

            # 2. Encode deterministically, and climb to the noise level
            latents, unet = self.encode_pixels(pixels), state.counted(self.unet)
            display = Display(self, pixels, latents, settings, output_type)
            way, generator = self._way(unet, settings, latents, generator, noise, len(question))
            start = way.begin(torch.arange(len(pixels)), settings.strength, watch.shown)

            # 3. Denoise: the counterfactuals under guidance, the null edits from the same start without
            guided = self._editor(unet, settings, judge)
            editor: Any = guided
            timesteps = guided.timesteps(start)
            if settings.target_probability is not None:

                def as_shown(trial: Edit, images: torch.Tensor) -> torch.Tensor:
                    return judge.probabilities(display.edited(trial, images))

                editor = SmallestEdit(editor, way, settings, as_shown, self.progress_bar)
            if settings.finds_region and settings.start != "noised_paths":  # which finds it in the edit itself
                editor = WithinItsRegion(editor)
            if settings.stop_probability is not None:
                editor = ShortenedEdit(editor, guided, judge.problem_type, settings.stop_probability)
            edit = editor.edit(start, question, generator, watch)

            # 4. Decode, classify the pictures that the user gets, make the controls, take the differences
            reporter = None if outside is None else ExternalJudge(self, outside)
            asked = (settings, judge, reporter, output_type, controls, timesteps)
            output = assemble(self, display, question, edit, *asked, state.num_evaluations)
        return output if return_dict else output.to_tuple()

    def resolve_settings(self, **options: Any) -> CounterfactualSettings:
        """The settings of a call with these options: where they are left out the checkpoint's, then the defaults.

        Args:
            options: any of the pipeline's options; `None` leaves one out.

        Raises:
            ValueError: for options that cannot be used.
        """
        return CounterfactualSettings.resolve(options, self.unet.config.guidance_defaults, self.scheduler)

    def strength_of_snr(self, start_snr: float) -> float:
        """The strength whose noise level has this signal-to-noise ratio, abar_t / (1 - abar_t).

        Raises:
            ValueError: if it is not above 0 or lies outside the schedule.
        """
        return strength_of_snr(start_snr, self.scheduler)

    def check_inputs(
        self,
        settings: CounterfactualSettings,
        num_images: int,
        generator: Generators,
        noise: torch.Tensor | None,
        output_type: str,
    ) -> None:
        """Refuse arguments that cannot work beside these settings, before any work is done."""
        if noise is not None and settings.start != "noise":
            raise ValueError(f"`noise` is for `start='noise'`, but `start` is {settings.start!r}.")
        if noise is not None:
            check_latents("noise", noise, (num_images, self.unet.config.in_channels, *self.latent_size))
        self.check_generator(generator, num_images)
        check_output_type(output_type)

    def _judge(self, settings: CounterfactualSettings, outside: Any) -> Judge:
        if settings.guidance_mode != "external":
            return OwnJudge(self)
        if outside is None:
            raise ValueError("`guidance_mode='external'` needs a `classifier`, an image classifier of transformers.")
        return ExternalJudge(self, outside)

    def _editor(self, unet: Any, settings: CounterfactualSettings, judge: Judge) -> Editor:
        kind: type[Editor] = FollowPath if settings.follow_inversion else Sample
        if settings.start == "noised_paths":
            kind = FollowNoisedPaths
        return kind(unet, self.scheduler, settings, judge.latent_classifier)

    def _way(
        self,
        unet: Any,
        settings: CounterfactualSettings,
        latents: torch.Tensor,
        generator: Generators,
        noise: torch.Tensor | None,
        num_rows: int,
    ) -> tuple[Way, Generators]:
        """To the noise level, and a generator for step noise that can be cloned."""
        num_images = len(latents)
        if settings.start == "inversion":
            return Inversion(unet, self.scheduler, settings, latents), generator
        if settings.start == "noised_paths":
            if generator is None:  # an explanation is the same every time, and in every batch
                generator = [torch.Generator().manual_seed(0) for _ in range(num_images)]
            own = one_per_image(generator, num_images)
            return NoisedPaths(unet, self.scheduler, settings, latents, own), None
        generator = own_generator(generator)
        if noise is None:
            noise = randn_tensor(latents.shape, generator, latents.device, latents.dtype)
        if num_rows != num_images or settings.finds_region or settings.target_probability is not None:
            generator = one_per_image(generator, num_images)
        return AddedNoise(self.scheduler, latents, noise), generator


def one_per_image(generator: Generators, num_images: int) -> list[torch.Generator]:
    """A generator per image, so that every edit of an image gets the same step noise."""
    if isinstance(generator, list):
        return generator
    assert generator is not None
    seeds = torch.randint(2**63 - 1, (num_images,), generator=generator, device=generator.device)
    return [torch.Generator(generator.device).manual_seed(int(seed)) for seed in seeds]
