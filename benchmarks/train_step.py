#!/usr/bin/env python
"""What the class loss and the autoencoder add to a training step.

Every figure is a ratio of two things measured in this one process, in turns, so that whatever else the machine does
falls on both: median CPU seconds of a joint step over those of a plain `UNet2DModel` diffusion step at the same
diffusion batch. A step is forward, losses, backward, gradient clipping, AdamW and moving average.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py
    OMP_NUM_THREADS=1 python benchmarks/train_step.py --shape paper --train_batch_size 2 --labelled_batch_sizes 1

The class loss on every 4th step, as the authors run it, costs (one joint step + three of diffusion alone) / 4.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DModel
from tqdm.auto import tqdm

from mediffusion_diffusers import JointUNet2DModel
from mediffusion_diffusers.atomic_files import read_json, write_json
from mediffusion_diffusers.data.phantom import prepare_phantoms
from mediffusion_diffusers.data.schema import load_prepared, parquet_files
from mediffusion_diffusers.data.transforms import ImageTransform
from mediffusion_diffusers.latents import encode_pixels
from mediffusion_diffusers.models.presets import PAPER_NOISE_SCHEDULE, PAPER_UNET
from mediffusion_diffusers.training.data.image_rows import ImageRows, stream_batches
from mediffusion_diffusers.training.data.latent_cache import CachePlan, open_latent_cache, stream_latents
from mediffusion_diffusers.training.data.streams import IndexStream
from mediffusion_diffusers.training.joint.objectives import DiffusionBatch, JointObjective, LabelledBatch
from mediffusion_diffusers.training.run.ema import EMAWeights
from mediffusion_diffusers.training.run.optimizer import build_adamw


DEMO_UNET: dict[str, Any] = {  # the U-Net of the preset phantom-demo
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "attention_head_dim": 16,
    "norm_num_groups": 8,
}
DEMO_HEAD = {"classifier_pool_size": 4, "classifier_hidden_size": 128, "num_labels": 5}


class Side:
    """One kind of step, with a model, optimizer and moving average of its own."""

    def __init__(self, model: UNet2DModel, losses: Callable[[], torch.Tensor]):
        self.model, self.losses = model, losses
        self.parameters = list(model.parameters())
        self.optimizer = build_adamw([{"params": self.parameters, "lr": 1e-4}])
        self.ema = EMAWeights(model)
        self.seconds: list[float] = []

    def step(self, is_counted: bool = True) -> None:
        """Take one step and note its CPU time."""
        started = time.process_time()
        self.losses().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step()
        if is_counted:
            self.seconds.append(time.process_time() - started)


def plain_side(config: dict[str, Any], scheduler: Any, batch: DiffusionBatch) -> Side:
    """diffusers' own unconditional training step."""
    model = UNet2DModel(**config).to(memory_format=torch.channels_last)

    def losses() -> torch.Tensor:
        noisy_latents = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        return torch.nn.functional.mse_loss(model(noisy_latents, batch.timesteps).sample, batch.noise)

    return Side(model, losses)


def joint_side(
    config: dict[str, Any], scheduler: Any, batch: DiffusionBatch, labelled: LabelledBatch | None, share_forward: bool
) -> Side:
    """The joint step, or without `labelled` the joint trainer's step of diffusion alone."""
    model = JointUNet2DModel(**config).to(memory_format=torch.channels_last)
    objective = JointObjective(model, scheduler, share_forward=share_forward)
    return Side(model, lambda: objective(batch, labelled)["loss"])


def diffusion_batch(shape: tuple[int, ...], size: int) -> DiffusionBatch:
    """Random latents, noise and timesteps."""
    latents, noise = (torch.randn(size, *shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
    return DiffusionBatch(latents, noise, torch.randint(0, 1000, (size,)), size)


def labelled_batch(shape: tuple[int, ...], size: int, num_labels: int) -> LabelledBatch:
    """Random latents at t = 0 with random labels."""
    latents = torch.randn(size, *shape).contiguous(memory_format=torch.channels_last)
    return LabelledBatch(latents, torch.zeros(size, dtype=torch.long), torch.randint(0, 2, (size, num_labels)).float())


def step_ratios(shape: str, train_batch_size: int, labelled_batch_sizes: list[int], num_rounds: int) -> dict[str, Any]:
    """Measure all kinds of step in turns.

    Args:
        shape: `"demo"` or `"paper"`.
        train_batch_size: diffusion batch of every side.
        labelled_batch_sizes: labelled batches to try.
        num_rounds: steps of each kind.

    Returns:
        Ratios to the plain step by labelled batch, and the seconds that they come from.
    """
    torch.manual_seed(0)
    config = DEMO_UNET if shape == "demo" else {k: v for k, v in PAPER_UNET.items() if "classifier" not in k}
    head = DEMO_HEAD if shape == "demo" else {"num_labels": 14}
    scheduler = DDPMScheduler(**PAPER_NOISE_SCHEDULE)
    latent_shape = (config["in_channels"], config["sample_size"], config["sample_size"])
    batch = diffusion_batch(latent_shape, train_batch_size)
    joint = {**config, **head}
    sides = {
        "plain UNet2DModel": plain_side(config, scheduler, batch),
        "diffusion alone": joint_side(joint, scheduler, batch, None, True),
    }
    for size in labelled_batch_sizes:
        labelled = labelled_batch(latent_shape, size, head["num_labels"])
        sides[f"labelled {size}, one pass"] = joint_side(joint, scheduler, batch, labelled, True)
        sides[f"labelled {size}, two passes"] = joint_side(joint, scheduler, batch, labelled, False)
    for side in sides.values():
        side.step(is_counted=False)
    for _ in tqdm(range(num_rounds), desc=f"Steps at the {shape} shape"):
        for side in sides.values():
            side.step()
    medians = {name: statistics.median(side.seconds) for name, side in sides.items()}
    plain, alone = medians["plain UNet2DModel"], medians["diffusion alone"]
    ratios = {}
    for name, value in medians.items():
        if name.startswith("labelled"):
            every_fourth = (value + 3 * alone) / 4
            ratios[name] = {"every_step": round(value / plain, 3), "every_4th_step": round(every_fourth / plain, 3)}
    return {
        "shape": shape,
        "train_batch_size": train_batch_size,
        "num_rounds": num_rounds,
        "ratio_to_plain_step": {"diffusion alone": round(alone / plain, 3), **ratios},
        "median_cpu_seconds": {name: round(value, 4) for name, value in medians.items()},
    }


def cache_gain(num_rounds: int, image_size: int = 64, batch_size: int = 32) -> dict[str, Any]:
    """CPU seconds to get a batch of latents: reading, augmenting and encoding images, or taking them from the cache.

    Args:
        num_rounds: batches of each kind.
        image_size: side of the phantoms.
        batch_size: images per batch.

    Returns:
        Medians of both, their ratio, and what the cache cost once.
    """
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=image_size,
    ).eval()
    vae.requires_grad_(False)
    transform = ImageTransform(image_size, 1, shift=2, intensity=0.1)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        prepare_phantoms(data, 128, 0, 0, image_size=image_size, show_progress=False)
        rows = ImageRows(load_prepared(data, "train"))
        plan = CachePlan(rows, np.arange(128), transform, 4)
        started = time.process_time()
        cache = open_latent_cache(Path(folder) / "latents", vae, plan, parquet_files(data, "train"))
        once = time.process_time() - started
        stream = IndexStream(np.arange(128), batch_size, 0, "diffusion")
        encoded, cached = stream_batches(rows, transform, stream), stream_latents(cache, stream)
        seconds: dict[str, list[float]] = {"encoded": [], "cached": []}
        for _ in tqdm(range(num_rounds), desc="Batches of latents"):
            started = time.process_time()
            with torch.no_grad():
                encode_pixels(vae, next(encoded))
            seconds["encoded"].append(time.process_time() - started)
            started = time.process_time()
            next(cached)
            seconds["cached"].append(time.process_time() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "image_size": image_size,
        "batch_size": batch_size,
        "autoencoder": "AutoencoderKL (32, 64, 64)",
        "median_cpu_seconds": {name: round(value, 5) for name, value in medians.items()},
        "ratio_encoded_to_cached": round(medians["encoded"] / medians["cached"], 1),
        "cpu_seconds_to_fill_128_images_in_4_variants": round(once, 2),
    }


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("demo", "paper"), default="demo")
    parser.add_argument("--train_batch_size", type=int, default=32)
    parser.add_argument("--labelled_batch_sizes", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--num_rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "train_step.json")
    args = parser.parse_args()
    key = f"{args.shape}, batch {args.train_batch_size}"
    result = step_ratios(args.shape, args.train_batch_size, args.labelled_batch_sizes, args.num_rounds)
    report = read_json(args.output) if args.output.is_file() else {}
    report["machine"] = {
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    report.setdefault("steps", {})[key] = {"command": " ".join(["python", *sys.argv]), **result}
    if args.shape == "demo":
        report["latent_cache"] = cache_gain(args.num_rounds)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, report)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
