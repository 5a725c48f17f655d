"""One evaluation of the model at a timestep, in the ways that `counterfactual.py` compares.

- *unguided*: the U-Net without a graph.
- *guided*: ours (mode `zt`), logits, gradient and skip connections from one encoder pass.
- *two passes*: the unguided step, and the encoder again for the gradient.
- *authors*: the paper's authors' step: the whole U-Net with a graph, the classifier on the predicted clean latents,
  the gradient through both; a further encoder pass on the original, which they do not use; trainable parameters.
- *separate classifier*: the unguided step and a classifier of its own, the encoder's shape at half the width.

Layouts: `contiguous` is diffusers' default; `prepacked` keeps oneDNN's direct convolutions packed; `winograd` is what
`prepack_convolutions` does by default.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers import AutoencoderKL
from edit_cost import peak_megabytes
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm
from train_step import DEMO_HEAD, DEMO_UNET
from transformers import ResNetConfig, ResNetForImageClassification

from mediffusion_diffusers import JointUNet2DModel
from mediffusion_diffusers.acceleration import prepack_convolutions, to_channels_last
from mediffusion_diffusers.guidance import (
    ExternalClassifier,
    GuidanceTarget,
    guide_model_output,
    predict_guided,
    predict_original_sample,
)
from mediffusion_diffusers.latents import decode_latents, encode_pixels
from mediffusion_diffusers.models.presets import PAPER_AUTOENCODER, PAPER_UNET


SHAPES: dict[str, dict[str, Any]] = {"paper": {**PAPER_UNET, "num_labels": 14}, "demo": {**DEMO_UNET, **DEMO_HEAD}}
LAYOUTS = ("contiguous", "channels_last", "prepacked", "winograd")
TRAINABLE_LAYOUTS = LAYOUTS[:2]  # trainable parameters do not run with prepared weights
TIMESTEP, ALPHA_PROD = torch.tensor(300), torch.tensor(0.6)
FULL_GRAPH = "full graph with parameter gradients"
MEMORY_STEPS = ("unguided", "guided", FULL_GRAPH, "authors")
# Convolutions that reach a core's peak: `(batch, channels, side)` of the input, 3x3 kernels.
PEAK_CONVOLUTIONS = ((1, 256, 64), (1, 512, 32), (4, 256, 32), (1, 256, 128))

Step = Callable[[], Any]


def build_unets(shape: str, layouts: Iterable[str] = LAYOUTS, **overrides: Any) -> dict[str, JointUNet2DModel]:
    """Frozen models with the same random weights, by layout; those after `channels_last` share its memory."""
    unets: dict[str, JointUNet2DModel] = {}
    for layout in layouts:
        shared = unets.get("channels_last")
        torch.manual_seed(0)
        with torch.device("cpu" if shared is None else "meta"):
            unet = JointUNet2DModel(**{**SHAPES[shape], **overrides})
        if shared is not None:
            unet.load_state_dict(shared.state_dict(), assign=True)
        unets[layout] = lay_out(unet.eval().requires_grad_(False), layout)
    return unets


def build_unet(shape: str, layout: str = "contiguous") -> JointUNet2DModel:
    """One of them."""
    return build_unets(shape, [layout])[layout]


def build_vae(layout: str = "contiguous") -> AutoencoderKL:
    """The paper's autoencoder for grey images, frozen, with random weights."""
    torch.manual_seed(0)
    vae = AutoencoderKL(in_channels=1, out_channels=1, **PAPER_AUTOENCODER).eval().requires_grad_(False)
    return lay_out(vae, layout)


def lay_out(model: Any, layout: str) -> Any:
    """Bring a model to one of `LAYOUTS`."""
    if layout != "contiguous":
        to_channels_last(model)
    if layout in ("prepacked", "winograd"):
        prepack_convolutions(model, winograd=layout == "winograd")
    return model


class GuidanceSteps:
    """One evaluation of a model, in the ways that are compared.

    Args:
        unet: the joint model.
        batch_size: latents per step.
    """

    def __init__(self, unet: JointUNet2DModel, batch_size: int = 1):
        self.unet = unet
        side = unet.config.sample_size
        self.sample = torch.randn(batch_size, unet.config.in_channels, side, side).to(unet.device, unet.dtype)
        direction = torch.zeros(batch_size, unet.config.num_labels)
        direction[:, 0] = -1
        self.target = GuidanceTarget(direction, unet.config.problem_type)

    @torch.no_grad()
    def unguided(self) -> torch.Tensor:
        """The prediction alone."""
        return self.unet(self.sample, TIMESTEP, return_logits=False).sample

    def guided(self) -> torch.Tensor:
        """Ours."""
        return predict_guided(self.unet, self.sample, TIMESTEP, self.target, 1.0, ALPHA_PROD).model_output

    def guided_by(self, classifier: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Guidance by a classifier of clean latents, eps held constant (App. H)."""
        place = ("epsilon", "external", classifier)
        return predict_guided(self.unet, self.sample, TIMESTEP, self.target, 1.0, ALPHA_PROD, *place).model_output

    def two_passes(self, classifier: JointUNet2DModel | None = None) -> torch.Tensor:
        """The unguided step, and an encoder pass for the gradient."""
        return guide_model_output(self.unguided(), self.gradient(classifier or self.unet), ALPHA_PROD, 1.0)

    def gradient(self, classifier: JointUNet2DModel) -> torch.Tensor:
        """Gradient of the target's log-probability with respect to the latents, from an encoder pass of its own."""
        leaf = self.sample.clone().requires_grad_()
        logits = classifier(leaf, TIMESTEP, return_sample=False).logits
        return torch.autograd.grad(self.target.objective(logits.float()).sum(), leaf)[0]

    def authors(self) -> torch.Tensor:
        """The paper's authors' step, with trainable parameters as in their code."""
        self.unet.requires_grad_(True)
        leaf = self.sample.clone().requires_grad_()
        noise_pred = self.unet(leaf, TIMESTEP, return_logits=False).sample
        z_0 = predict_original_sample(noise_pred, leaf, ALPHA_PROD)
        logits = self.unet(z_0, TIMESTEP, return_sample=False).logits
        self.unet(self.sample, 1, return_sample=False)
        (gradient,) = torch.autograd.grad(self.target.objective(logits).sum(), leaf)
        self.unet.requires_grad_(False)
        return guide_model_output(noise_pred.detach(), gradient, ALPHA_PROD, 1.0)

    def full_graph(self) -> torch.Tensor:
        """One pass, but with a graph of everything and a gradient for every parameter of the encoder."""
        self.unet.requires_grad_(True)
        leaf = self.sample.clone().requires_grad_()
        output = self.unet(leaf, TIMESTEP)
        self.target.objective(output.logits).sum().backward()
        return guide_model_output(output.sample.detach(), leaf.grad, ALPHA_PROD, 1.0)


def measure(
    steps: dict[str, Step], num_rounds: int, description: str, has_warm_up: bool = True
) -> dict[str, list[float]]:
    """CPU seconds of each step, taken in turns, every other round backwards; a first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_index in tqdm(range(-has_warm_up, num_rounds), desc=description):
        for name in list(steps)[:: 1 if round_index % 2 else -1]:
            started = time.process_time()
            steps[name]()
            if round_index >= 0:
                seconds[name].append(time.process_time() - started)
    return seconds


def medians_of(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Median of each."""
    return {name: round(statistics.median(values), 4) for name, values in seconds.items()}


def peak_steps() -> dict[tuple[int, int, int], Step]:
    """Large convolutions in their best layout, by shape."""

    def convolution(batch: int, channels: int, side: int) -> Step:
        image = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
        layer = lay_out(torch.nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False), "prepacked")
        return lambda: layer(image)

    return {shape: convolution(*shape) for shape in PEAK_CONVOLUTIONS}


def gflops_of(shape: str) -> dict[str, float]:
    """Exact GFLOPs of a step with one image, attention's products included."""
    with torch.device("meta"):
        unet = JointUNet2DModel(**SHAPES[shape]).eval().requires_grad_(False)
        steps = GuidanceSteps(unet)
        with FlopCounterMode(display=False) as unguided:
            steps.unguided()
        with FlopCounterMode(display=False) as guided:  # it does not bear `torch.autograd.grad`
            unet(steps.sample.requires_grad_(), TIMESTEP, detach_decoder=True).logits.sum().backward()
    return {"unguided": unguided.get_total_flops() / 1e9, "guided": guided.get_total_flops() / 1e9}


def compare_steps(shape: str, num_rounds: int) -> dict[str, Any]:
    """Kinds of step by layout, and the share of the core's convolution peak that they reach."""
    steps: dict[str, Step] = {}
    half = [width // 2 for width in SHAPES[shape]["block_out_channels"]]
    unets, narrow_unets = build_unets(shape), build_unets(shape, block_out_channels=half)
    for layout in LAYOUTS:
        sides, narrow = GuidanceSteps(unets[layout]), narrow_unets[layout]
        steps[f"unguided, {layout}"] = sides.unguided
        steps[f"guided, {layout}"] = sides.guided
        steps[f"two passes, {layout}"] = sides.two_passes
        steps[f"separate classifier, {layout}"] = lambda sides=sides, narrow=narrow: sides.two_passes(narrow)
        if layout in TRAINABLE_LAYOUTS:
            steps[f"authors, {layout}"] = sides.authors
    peaks = peak_steps()
    seconds = measure({**steps, **{str(key): step for key, step in peaks.items()}}, num_rounds, f"Steps, {shape}")
    peak = max(2 * 9 * b * c * c * side**2 / min(seconds[str((b, c, side))]) / 1e9 for b, c, side in peaks)
    medians = medians_of({name: seconds[name] for name in steps})
    gflops = gflops_of(shape)
    ratios: dict[str, Any] = {}
    for layout in LAYOUTS:
        guided = medians[f"guided, {layout}"]
        ratios[layout] = {
            "guided / unguided": guided / medians[f"unguided, {layout}"],
            "two passes / guided": medians[f"two passes, {layout}"] / guided,
            "separate classifier / guided": medians[f"separate classifier, {layout}"] / guided,
            "contiguous guided / guided": medians["guided, contiguous"] / guided,
            "contiguous unguided / unguided": medians["unguided, contiguous"] / medians[f"unguided, {layout}"],
            "contiguous authors / guided": medians["authors, contiguous"] / guided,
            "guided, share of the convolution peak": gflops["guided"] / guided / peak,
            "unguided, share of the convolution peak": gflops["unguided"] / medians[f"unguided, {layout}"] / peak,
        }
        if layout in TRAINABLE_LAYOUTS:
            ratios[layout]["authors / guided"] = medians[f"authors, {layout}"] / guided
    return {
        "batch_size": 1,
        "num_rounds": num_rounds,
        "gflops": gflops,
        "convolution_peak_gflops_per_second": peak,
        "ratios": ratios,
        "median_cpu_seconds": medians,
    }


def compare_batches(shape: str, num_rounds: int) -> dict[str, Any]:
    """CPU seconds per image of the guided step, by batch and layout."""
    unets = build_unets(shape, ("channels_last", "prepacked", "winograd"))
    sizes = (1, 2, 4, 8)
    steps = {f"{layout}, {size}": GuidanceSteps(unet, size).guided for layout, unet in unets.items() for size in sizes}
    medians = medians_of(measure(steps, num_rounds, f"Batches, {shape}"))
    return {
        "num_rounds": num_rounds,
        "guided_cpu_seconds_per_image_by_batch_size": {
            layout: {size: medians[f"{layout}, {size}"] / size for size in sizes} for layout in unets
        },
    }


def peak_memory(shape: str, step: str, batch_size: int) -> float:
    """Megabytes that a step takes above the model: this process's largest resident size less the present one.

    Not `ru_maxrss`, which a process inherits from the one that started it.
    """
    for name in ("demo", shape):  # the first loads what the first step of any model loads
        steps = GuidanceSteps(build_unet(name, "channels_last"), batch_size)
        kinds = {"unguided": steps.unguided, "guided": steps.guided, "authors": steps.authors}
        megabytes = peak_megabytes({**kinds, FULL_GRAPH: steps.full_graph}[step])
    return megabytes


def compare_memory(shape: str, batch_size: int) -> dict[str, Any]:
    """Memory of each kind of step, in a fresh process for each."""
    megabytes = {}
    for step in tqdm(MEMORY_STEPS, desc=f"Memory, {shape}"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            megabytes[step] = pool.apply(peak_memory, (shape, step, batch_size))
    return {
        "batch_size": batch_size,
        "layout": "channels_last",
        "how": "growth of VmHWM over one step, a fresh process for each kind",
        "megabytes_above_the_model": megabytes,
        f"guided / {FULL_GRAPH}": megabytes["guided"] / megabytes[FULL_GRAPH],
        "guided / authors": megabytes["guided"] / megabytes["authors"],
    }


def compare_external(num_rounds: int) -> dict[str, Any]:
    """Guidance by an image classifier through the decoder (a ResNet-50 at 256x256) against ours."""
    classifier = ResNetForImageClassification(ResNetConfig(num_labels=14)).eval().requires_grad_(False)
    external = ExternalClassifier(classifier)
    steps: dict[str, Step] = {}
    for layout in ("channels_last", "winograd"):
        sides, vae = GuidanceSteps(build_unet("paper", layout)), build_vae(layout)
        steps[f"guided, {layout}"] = sides.guided
        steps[f"external, {layout}"] = lambda sides=sides, vae=vae: sides.guided_by(
            lambda latents: external(decode_latents(vae, latents))
        )
    lay_out(classifier, "channels_last")
    medians = medians_of(measure(steps, num_rounds, "External guidance"))
    return {
        "classifier": "ResNetForImageClassification (ResNet-50), 256x256",
        "num_rounds": num_rounds,
        "external / guided": {
            layout: medians[f"external, {layout}"] / medians[f"guided, {layout}"]
            for layout in ("channels_last", "winograd")
        },
        "median_cpu_seconds": medians,
    }


def compare_precisions(num_rounds: int) -> dict[str, Any]:
    """What layout and bfloat16 do for each network, in time and in error."""
    pixels, latents = torch.rand(1, 1, 256, 256) * 2 - 1, torch.randn(1, 4, 32, 32)
    layouts = ("contiguous", "channels_last", "winograd")
    unets = {**build_unets("paper", layouts), "bfloat16": build_unet("paper", "channels_last").to(torch.bfloat16)}
    vaes = {layout: build_vae(layout) for layout in layouts}
    vaes["bfloat16"] = build_vae("channels_last").to(torch.bfloat16)
    steps: dict[str, Step] = {}
    gradients: dict[str, Step] = {}
    for name, vae in vaes.items():
        sides = GuidanceSteps(unets[name])
        sides.sample = latents.to(vae.dtype)
        steps[f"encode, {name}"] = torch.no_grad()(lambda vae=vae: encode_pixels(vae, pixels))
        steps[f"decode, {name}"] = torch.no_grad()(lambda vae=vae: decode_latents(vae, latents))
        steps[f"unguided, {name}"], steps[f"guided, {name}"] = sides.unguided, sides.guided
        gradients[f"gradient, {name}"] = lambda sides=sides: sides.gradient(sides.unet)
    medians = medians_of(measure(steps, num_rounds, "Precisions"))

    def error(kind: str, name: str) -> float:
        exact, value = ({**steps, **gradients}[f"{kind}, {layout}"]().float() for layout in ("contiguous", name))
        return float((value - exact).norm() / exact.norm())

    networks = ("encode", "decode", "unguided", "guided")
    compared = ("encode", "decode", "unguided", "gradient")
    return {
        "num_rounds": num_rounds,
        "relative_error_to_contiguous": {kind: {name: error(kind, name) for name in vaes} for kind in compared},
        "contiguous / layout": {
            kind: {name: medians[f"{kind}, contiguous"] / medians[f"{kind}, {name}"] for name in vaes}
            for kind in networks
        },
        "median_cpu_seconds": medians,
    }


def compare_compiled(num_rounds: int) -> dict[str, Any]:
    """`torch.compile` of the unguided step."""
    eager, compiled = (GuidanceSteps(build_unet("paper", "channels_last")) for _ in range(2))
    compiled.unet = torch.compile(compiled.unet)
    started = time.process_time()
    compiled.unguided()
    once = time.process_time() - started
    steps = {"eager": eager.unguided, "compiled": compiled.unguided}
    medians = medians_of(measure(steps, num_rounds, "torch.compile"))
    return {
        "step": "unguided, channels_last",
        "num_rounds": num_rounds,
        "cpu_seconds_to_compile": round(once, 1),
        "eager / compiled": medians["eager"] / medians["compiled"],
        "median_cpu_seconds": medians,
    }
