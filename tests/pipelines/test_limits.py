"""Where numbers, schedules and components end: an error that names the argument, never a grey picture."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from support.components import generators, random_images, tiny_pipeline, tiny_scheduler, tiny_vae

from mediffusion_diffusers import (
    MediffusionClassifyPipeline,
    MediffusionCounterfactualPipeline,
    MediffusionGuidedPipeline,
)


CALLS = {
    MediffusionClassifyPipeline: {"images": random_images(1)},
    MediffusionGuidedPipeline: {"towards": "Mass", "num_inference_steps": 2},
    MediffusionCounterfactualPipeline: {
        "image": random_images(1),
        "away": "Mass",
        "num_inference_steps": 3,
        "strength": 0.2,
        "output_type": "latent",
    },
}
GENERATORS = tuple(CALLS)[1:]
BY_CLASS = pytest.mark.parametrize("cls", CALLS)


def call(pipe, **changes):
    return pipe(**{**CALLS[type(pipe)], **changes})


@pytest.mark.parametrize("cls", GENERATORS)
@pytest.mark.parametrize("dtype, scale", [(torch.float32, 1e30), (torch.float32, 1e300), (torch.float16, 1e30)])
def test_guidance_that_overflows(cls, dtype, scale):
    pipe = tiny_pipeline(cls).to(dtype)
    with pytest.raises(ValueError, match=r"NaN or infinite values under guidance, at a `guidance_scale` of up to"):
        call(pipe, guidance_scale=scale)


def test_a_penalty_that_overflows():
    with pytest.raises(ValueError, match=r"under guidance, at a `guidance_scale` of up to .* with `hold=1e\+30`"):
        call(tiny_pipeline(MediffusionCounterfactualPipeline), hold=1e30)


@pytest.mark.parametrize("cls", GENERATORS)
def test_a_callback_that_returns_nan(cls):
    spoil = {"callback_on_step_end": lambda pipe, step, timestep, tensors: {"latents": tensors["latents"] * torch.nan}}
    with pytest.raises(
        ValueError, match="`callback_on_step_end` returned 'latents' with NaN or infinite values after"
    ):
        call(tiny_pipeline(cls), **spoil, callback_on_step_end_tensor_inputs=["latents"])


@pytest.mark.parametrize("cls", GENERATORS)
def test_a_broken_model(cls):
    pipe = tiny_pipeline(cls)
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite values"):
        call(pipe, guidance_scale=0.0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_given_noise_is_finite(value):
    noise = torch.zeros(1, 4, 8, 8)
    noise[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="`noise` must be finite"):
        call(tiny_pipeline(MediffusionCounterfactualPipeline), start="noise", noise=noise)
    with pytest.raises(ValueError, match="`latents` must be finite"):
        call(tiny_pipeline(MediffusionGuidedPipeline), latents=noise)
    with pytest.raises(ValueError, match="`latents` must be a tensor"):
        call(tiny_pipeline(MediffusionGuidedPipeline), latents=[0.0])


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("fade", [True, False])
def test_the_path_from_pure_noise(prediction_type, fade):
    """Zero terminal SNR: nothing can be pushed at the top, so that one step less from below gives the same edit."""
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline)
    pipe.scheduler = tiny_scheduler(rescale_betas_zero_snr=True, prediction_type=prediction_type)
    assert pipe.scheduler.alphas_cumprod[999] == 0
    arguments = {"strength": 1.0, "follow_inversion": True, "fade_guidance": fade, "num_inference_steps": 6}
    output = call(pipe, guidance_scale=5.0, **arguments)
    assert torch.isfinite(output.images).all()
    assert (output.probabilities_after[:, 2] < output.probabilities_null[:, 2]).all()
    null = call(pipe, guidance_scale=0.0, **arguments)
    assert torch.equal(null.images, null.originals) and torch.equal(null.images, output.null_images)


@BY_CLASS
def test_components_replaced_later_are_checked(cls):
    pipe = tiny_pipeline(cls)
    scheduler, vae = pipe.scheduler, pipe.vae
    pipe.scheduler = EulerDiscreteScheduler.from_config(scheduler.config)
    with pytest.raises(ValueError, match="`scheduler` must be one of DDIMScheduler"):
        call(pipe)
    pipe.scheduler, pipe.vae = scheduler, tiny_vae(channels=3)
    with pytest.raises(ValueError, match="`unet` takes 4 latent channels, but `vae` makes 12"):
        call(pipe)
    pipe.vae = vae
    call(pipe)


class TestCallbacks:
    @BY_CLASS
    def test_none_changes_nothing(self, cls):
        pipe = tiny_pipeline(cls)
        plain, watched = (
            call(pipe, generator=generators(0)[0], output_type="pt", callback_on_step_end=callback)[0]
            for callback in (None, lambda *_: None)
        )
        assert torch.equal(plain, watched)

    @BY_CLASS
    @pytest.mark.parametrize(
        "wrong, message",
        [
            ({"callback_on_step_end": 3}, "`callback_on_step_end` must be a function"),
            ({"callback_on_step_end": lambda *_: 3}, "`callback_on_step_end` must return a dict"),
            ({"callback_on_step_end": lambda *_: {"latents": 3}}, "`callback_on_step_end` must return 'latents'"),
            ({"callback_on_step_end_tensor_inputs": "latents"}, "must be among"),
            ({"callback_on_step_end_tensor_inputs": None}, "must be among"),
            ({"return_dict": 1}, "`return_dict` must be True or False"),
            ({"output_type": None}, "`output_type` must be one of"),
            ({"generator": [1]}, "`generator` must be a torch.Generator"),
        ],
    )
    def test_mistakes(self, cls, wrong, message):
        with pytest.raises(ValueError, match=message):
            call(tiny_pipeline(cls), **wrong)


WRONG = (float("nan"), float("inf"), -1, "2", True, [float("nan")], 10**400)
NUMBERS = {
    MediffusionClassifyPipeline: ("timesteps", "num_noise_samples", "thresholds", "batch_size"),
    MediffusionGuidedPipeline: ("num_images", "num_inference_steps", "guidance_scale", "eta"),
}


@pytest.mark.parametrize("cls, name", [(cls, name) for cls, names in NUMBERS.items() for name in names])
def test_wrong_numbers_name_their_argument(cls, name):
    pipe = tiny_pipeline(cls)
    for wrong in WRONG:
        with pytest.raises(ValueError, match=f"`{name}`"):
            call(pipe, **{name: wrong})


@pytest.mark.parametrize("cls", GENERATORS)
@pytest.mark.parametrize("labels", [{"Mass": 1}, 1.5, b"Mass", True, [None], [["Mass"], None], [1.5]])
@pytest.mark.parametrize("name", ["towards", "away"])
def test_what_is_no_label(cls, labels, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        call(tiny_pipeline(cls), **{"towards": None, "away": None, name: labels})


@pytest.mark.parametrize(
    "mask",
    [5, [], {}, True, object(), torch.zeros(0, 4), torch.full((16, 16), torch.nan), "given"]
    + [[{"x": value, "y": 0, "width": 1, "height": 1}] for value in (torch.nan, torch.inf, "a", None)],
)
def test_what_is_no_mask(mask):
    with pytest.raises(ValueError, match="`mask`"):
        call(tiny_pipeline(MediffusionCounterfactualPipeline), mask=mask)
