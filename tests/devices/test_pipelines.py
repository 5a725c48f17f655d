"""Every kind of pipeline call gives on an accelerator what it gives on the CPU."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from support.components import PROBLEM_TYPES, TINY_SCHEDULE, generators, random_pil, tiny_pipeline
from support.devices import assert_same, same_on
from transformers import ResNetConfig, ResNetForImageClassification

from mediffusion_diffusers import (
    MediffusionClassifyPipeline,
    MediffusionCounterfactualPipeline,
    MediffusionGuidedPipeline,
)


CLASSIFY = {
    "plain": {},
    "noised": {"timesteps": [0, 100], "num_noise_samples": 2, "batch_size": 1},
}
GUIDED = {
    "zt": {},
    "x0_detached": {"guidance_mode": "x0_detached"},
    "x0": {"guidance_mode": "x0"},
    "sweep": {"guidance_scale": [0, 5, 10]},
    "away": {"towards": None, "away": ["Mass", "Effusion"]},
    "eta": {"eta": 1.0},
}
FOLLOW = {"follow_inversion": True}
COUNTERFACTUAL = {
    "zt": {},
    "x0_detached": {"guidance_mode": "x0_detached"},
    "x0": {"guidance_mode": "x0"},
    "follow": FOLLOW,
    "first order": {"solver_order": 1},
    "noise": {"start": "noise"},
    "noise, eta": {"start": "noise", "eta": 1.0},
    "noised paths": {"start": "noised_paths", "num_noises": 3},
    "noised paths, fast": {"quality": "fast", "views": "shifts_and_flips"},
    "noised paths, one place": {"quality": "fast", "away": None, "towards": "Effusion"},
    "detail of the decoder": {"detail": "decoded"},
    "level by snr": {"strength": None, "start_snr": 3.0},
    "towards": {"away": None, "towards": "Effusion"},
    "several targets": {"away": [["Mass"], ["Effusion"], ["Mass", "Effusion"], ["Cardiomegaly"]]},
    "sweep": {"guidance_scale": [0.0, 5.0, 20.0, 40.0]},
    "by direction": {"guidance_scale": {"away": 7.0, "towards": 3.0}},
    "hold": {"hold": 0.02},
    "hold, follow": {"hold": 0.02, **FOLLOW},
    "hold, x0": {"hold": 0.02, "guidance_mode": "x0"},
    "fade, hold": {"fade_guidance": True, "hold": 0.02},
    "box": {"mask": [{"x": 0.2, "y": 0.2, "width": 0.5, "height": 0.5}]},
    "mask": {"mask": torch.eye(16)},
    "region found": {"mask": "auto"},
    "region found, noise": {"mask": "auto", "start": "noise", "eta": 1.0},
    "controls in a region": {"controls": True, "mask": "auto"},
    "search": {"target_probability": 0.45},
    "search, strengths": {"target_probability": 0.3, "max_strength": 0.4},
    "search, noise": {"target_probability": 0.45, "start": "noise", "eta": 1.0},
    "search, region found, follow": {"target_probability": 0.45, "mask": "auto", **FOLLOW},
}


def classify(device, **changes):
    pipe = tiny_pipeline(MediffusionClassifyPipeline, **changes.pop("components", {})).to(device)
    return pipe(random_pil(2), **{"output_type": "pt", "generator": generators(0)[0], **changes})


def generate(device, **changes):
    pipe = tiny_pipeline(MediffusionGuidedPipeline, **changes.pop("components", {})).to(device)
    arguments = {"towards": "Mass", "guidance_scale": 5.0, "num_images": 2, "num_inference_steps": 3}
    return pipe(**{**arguments, "output_type": "pt", "generator": generators(0)[0], **changes})


def explain(device, scheduler=None, **changes):
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline, **changes.pop("components", {})).to(device)
    pipe.scheduler = scheduler or pipe.scheduler
    return ask(pipe, **changes)


def ask(pipe, **changes):
    arguments = {"away": "Mass", "guidance_scale": 5.0, "num_inference_steps": 2, "strength": 0.2}
    arguments["controls"] = False
    return pipe(random_pil(2), **{**arguments, "output_type": "pt", "generator": generators(0, 1), **changes})


@pytest.mark.parametrize("arguments", CLASSIFY.values(), ids=CLASSIFY)
def test_classify(device, arguments):
    same_on(device, classify, **arguments)


@pytest.mark.parametrize("arguments", GUIDED.values(), ids=GUIDED)
def test_guided(device, arguments):
    same_on(device, generate, **arguments)


@pytest.mark.parametrize("arguments", COUNTERFACTUAL.values(), ids=COUNTERFACTUAL)
def test_counterfactual(device, arguments):
    same_on(device, explain, **arguments)


@pytest.mark.parametrize("call", [classify, generate, explain])
@pytest.mark.parametrize(
    "components",
    [{"problem_type": problem_type} for problem_type in PROBLEM_TYPES] + [{"vae": "kl", "channels": 3}],
    ids=[*PROBLEM_TYPES, "variational autoencoder"],
)
def test_components(device, call, components):
    same_on(device, call, components=components)


def test_ddpm(device):
    same_on(device, explain, components={"scheduler": "ddpm"}, start="noise")


@pytest.mark.parametrize("start", ["inversion", "noise"])
def test_dpm_solver(device, start):
    same_on(device, explain, scheduler=DPMSolverMultistepScheduler(**_DPM), start=start)


_DPM = {name: value for name, value in TINY_SCHEDULE.items() if name != "clip_sample"}


def outside_classifier():
    torch.manual_seed(0)
    labels = {"id2label": {0: "sick", 1: "healthy"}, "label2id": {"sick": 0, "healthy": 1}}
    config = ResNetConfig(num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **labels)
    return ResNetForImageClassification(config).eval()


@pytest.mark.parametrize("on_device", [True, False], ids=["on the device", "on the CPU"])
@pytest.mark.parametrize("arguments", [{}, {"target_probability": 0.4}], ids=["scale", "search"])
def test_an_outside_classifier_guides(device, arguments, on_device):
    def guided_by_another(where):
        classifier = outside_classifier().to(where if on_device else "cpu")
        return explain(where, away="sick", guidance_mode="external", classifier=classifier, **arguments)

    same_on(device, guided_by_another)


def test_an_outside_classifier_reports(device):
    same_on(device, lambda where: explain(where, classifier=outside_classifier().to(where)))


def test_noise_and_latents_may_come_from_either_device(device):
    noise = torch.randn(2, 4, 8, 8, generator=generators(0)[0])
    expected = explain("cpu", start="noise", noise=noise)
    for given in (noise, noise.to(device)):
        assert_same(explain(device, start="noise", noise=given), expected)
    expected = generate("cpu", latents=noise)
    for given in (noise, noise.to(device)):
        assert_same(generate(device, latents=given), expected)


def test_a_generator_of_the_device(device):
    """Its numbers are its own; that two calls agree is what it is for."""
    for call in (generate, explain):
        changes = {"start": "noise"} if call is explain else {}
        one, other = (call(device, generator=torch.Generator(device).manual_seed(3), **changes) for _ in range(2))
        assert one.images.device.type == device.type
        assert_same(one, other, atol=0, rtol=0)


def test_callbacks_get_tensors_of_the_device(device):
    seen = []

    def callback(pipe, step, timestep, kwargs):
        seen.append(kwargs["latents"].device.type)
        return {"latents": kwargs["latents"] * 0.9}

    same_on(device, explain, callback_on_step_end=callback)
    assert set(seen) == {"cpu", device.type}


@pytest.mark.parametrize("output_type", ["pil", "np", "latent"])
def test_output_types(device, output_type):
    same_on(device, explain, output_type=output_type)


def test_under_inference_mode(device):
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline).to(device)
    with torch.inference_mode():
        actual = ask(pipe)
    assert_same(actual, explain("cpu"))


def test_under_deterministic_algorithms(device):
    expected = explain("cpu")
    torch.use_deterministic_algorithms(True)
    try:
        one, other = explain(device), explain(device)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(one, expected)
    assert_same(one, other, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(device, dtype):
    expected = explain("cpu").probabilities_after
    actual = ask(tiny_pipeline(MediffusionCounterfactualPipeline).to(device, dtype)).probabilities_after
    torch.testing.assert_close(actual, expected, atol=0.1, rtol=0)


@pytest.mark.parametrize("storage_dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_layerwise_casting_keeps_the_guidance(device, storage_dtype):
    expected = explain("cpu").null_difference.flatten()
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline).to(device)
    pipe.unet.enable_layerwise_casting(storage_dtype=storage_dtype, compute_dtype=torch.float32)
    actual = ask(pipe, controls=True).null_difference.cpu().flatten()
    assert torch.cosine_similarity(actual, expected, dim=0) > 0.95


def test_model_offloading(device):
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline)
    pipe.enable_model_cpu_offload(device=device)
    assert_same(ask(pipe), explain("cpu"))
