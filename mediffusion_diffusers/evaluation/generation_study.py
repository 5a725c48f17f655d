"""Generate images with and without guidance, and measure them beside real ones: `generation.json` (Table 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.schema import parquet_files
from ..guidance import scale_for
from ..image_processor import normalize
from ..models.oracle_classifier import MIN_INPUT_SIZE, OracleClassifier, load_oracle
from ..options import Range, check_number
from ..pipelines import MediffusionGuidedPipeline
from .bootstrap import patient_numbers
from .classification import nan_to_none
from .generation import MIN_IMAGES, Memorisation, distances, distances_per_label, draw_real_sets
from .held_out import HeldOutSplit
from .provenance import checkpoint_hash, describe_provenance


MAX_NEIGHBOURS = 2000  # training images that are searched for copies, and as many held-out ones
NUM_SUSPECTS = 6
_SCALE = 10.0  # of a checkpoint that stores none, as the pipeline takes


@dataclass(frozen=True)
class Suspects:
    """The generated images that are most like a training image, with their neighbours, for the eye.

    Args:
        generated: shape `(num, channels, height, width)` in [0, 1].
        training: the nearest training image of each.
        held_out: the nearest held-out image of each.
        ratios: distance to the former over that to the latter, shape `(num,)`.
    """

    generated: np.ndarray
    training: np.ndarray
    held_out: np.ndarray
    ratios: np.ndarray


@dataclass(frozen=True)
class GenerationStudy:
    """What was generated, and how it compares.

    Args:
        results: the figures and where they come from, ready for JSON.
        guided: generated images, label by label, shape `(num, channels, height, width)` in [0, 1].
        unguided: from the same noise.
        suspects: nearest neighbours; None if the dataset holds no training images.
    """

    results: dict[str, Any]
    guided: np.ndarray
    unguided: np.ndarray
    suspects: Suspects | None


def study_generation(
    pipeline_folder: str | Path,
    dataset_folder: str | Path,
    oracle_path: str | Path,
    split: str = "test",
    num_images_per_label: int = 300,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> GenerationStudy:
    """Generate as many images of each label as there are real ones to compare with, and measure them.

    Args:
        pipeline_folder: folder of the pipeline.
        dataset_folder: a prepared dataset; with the split `train` that the pipeline was trained on, copies of its
            images are looked for.
        oracle_path: folder of an outside classifier, in whose features distances are measured.
        split: held-out split that the real images are drawn from.
        num_images_per_label: at most so many for each label; half of the split's images of a label are its floor.
        num_inference_steps: denoising steps (App. G: 50).
        guidance_scale: scale of Eq. 2 (App. G: 300); None is the checkpoint's.
        batch_size: images at a time.
        seed: of noise and draws.
        device: where model and oracle run.
        dtype: precision of the model's weights; the oracle's is float32.

    Raises:
        ValueError: if model, dataset and oracle do not fit, a number is out of range, or real images are too
            few.
    """
    check_number("num_images_per_label", num_images_per_label, Range(at_least=MIN_IMAGES), whole=True)
    pipe = MediffusionGuidedPipeline.from_pretrained(pipeline_folder, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    names = pipe.label_names
    real = HeldOutSplit(dataset_folder, split, names)
    oracle = load_oracle(oracle_path, device)
    scale = own_scale(pipe) if guidance_scale is None else float(guidance_scale)

    sets = draw_real_sets(real.labels, patient_numbers(real.patient_ids), num_images_per_label, seed)
    num_per_label = sets.num_per_label
    if sum(num_per_label) < MIN_IMAGES:
        raise ValueError(
            f"`split` {split!r} must hold at least {2 * MIN_IMAGES} images with a label, but does not: there is "
            "nothing to compare generated images with. Choose a larger split."
        )
    references, others = (_read(real, np.concatenate(rows), pipe) for rows in (sets.references, sets.others))
    reference_features = _features(oracle, references)  # before the long work, for which the oracle may not fit
    targets = np.repeat(np.arange(len(names)), num_per_label)
    guided, unguided = _Generator(pipe, num_inference_steps, scale, batch_size, seed).run(targets)

    images = {"guided": guided, "unguided": unguided, "real": others}
    features = {name: _features(oracle, each) for name, each in images.items()}
    generated = np.concatenate([guided, unguided])
    memorisation, suspects = _memorisation(pipe, oracle, dataset_folder, real, generated, seed)
    results: dict[str, Any] = {
        "provenance": {
            **describe_provenance(pipeline_folder, real.info, split),
            "oracle": checkpoint_hash(oracle_path),
            "study_seed": seed,
            "settings": {"num_inference_steps": num_inference_steps, "guidance_scale": scale},
        },
        "network": f"{oracle.network}, its last hidden state averaged over places",
        "resize": f"bilinear, smoothed when smaller, to its resolution and then to at least {MIN_INPUT_SIZE} pixels",
        "num_images_per_label": dict(zip(names, num_per_label, strict=True)),
        **{name: distances(each, reference_features) for name, each in features.items()},
        "per_label": distances_per_label(features, reference_features, num_per_label, names),
        "oracle_probability": _target_probability(oracle, images, targets, names),
        "memorisation": memorisation,
        "notes": real.notes()
        + _notes(dict(zip(names, num_per_label, strict=True)), num_images_per_label, split)
        + ([] if memorisation else ["The dataset holds no training images: nobody looked for copies."]),
    }
    return GenerationStudy(nan_to_none(results), guided, unguided, suspects)


@dataclass(frozen=True)
class _Generator:
    """Images from the same noise, with and without guidance."""

    pipe: MediffusionGuidedPipeline
    num_inference_steps: int
    guidance_scale: float
    batch_size: int
    seed: int

    def run(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Generate one image of each target, and one without from the same noise."""
        made: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        starts = range(0, len(targets), self.batch_size)
        for start in tqdm(starts, desc="Generating", unit="batch", disable=len(starts) < 2):
            some = targets[start : start + self.batch_size].tolist()
            for images, towards in zip(made, ([[self.pipe.label_names[one]] for one in some], None), strict=True):
                output = self.pipe(
                    towards=towards,
                    num_images=len(some),
                    num_inference_steps=self.num_inference_steps,
                    guidance_scale=self.guidance_scale if towards else None,
                    generator=[
                        torch.Generator().manual_seed(self.seed * 1_000_003 + start + index)
                        for index in range(len(some))
                    ],
                    output_type="pt",
                )
                images.append(output.images.float().cpu().numpy())
        guided, unguided = (np.concatenate(images) for images in made)
        return guided, unguided


def _memorisation(
    pipe: Any, oracle: OracleClassifier, folder: str | Path, held_out: HeldOutSplit, generated: np.ndarray, seed: int
) -> tuple[dict[str, Any] | None, Suspects | None]:
    """Nearest training against nearest held-out image, of pixels and of features; validation images beside.

    Nothing without the training images.
    """
    if not parquet_files(folder, "train"):
        return None, None
    training = HeldOutSplit(folder, "train", pipe.label_names)
    num = min(MAX_NEIGHBOURS, len(training.patient_ids), len(held_out.patient_ids))
    drawn = [_draw(each, num, pipe, seed) for each in (training, held_out)]
    num = min(map(len, drawn))
    neighbours = [each[:num] for each in drawn]
    validation = None
    if held_out.name != "validation" and parquet_files(folder, "validation"):
        validation = _draw(HeldOutSplit(folder, "validation", pipe.label_names), len(generated), pipe, seed)
    results: dict[str, Any] = {"num_training_images": num, "num_held_out_images": num}
    for name, view in (("pixels", _flat), ("features", lambda images: _features(oracle, images))):
        sets = [view(each) for each in neighbours]
        measured = Memorisation.of(view(generated), *sets)
        results[name] = {"generated": measured.summarize()}
        if validation is not None and len(validation):
            results[name]["validation_images"] = Memorisation.of(view(validation), *sets).summarize()
        if name == "pixels":
            places = measured.most_suspicious(NUM_SUSPECTS)
            ratios = (measured.to_training / np.maximum(measured.to_held_out, 1e-12))[places]
            nearest = measured.nearest_training[places], measured.nearest_held_out[places]
            suspects = Suspects(generated[places], neighbours[0][nearest[0]], neighbours[1][nearest[1]], ratios)
    return results, suspects


def _draw(split: HeldOutSplit, num: int, pipe: Any, seed: int) -> np.ndarray:
    """Images drawn from a split, at most `num`."""
    rows = np.random.default_rng(seed).permutation(len(split.patient_ids))[:num]
    return _read(split, np.sort(rows), pipe)


def _read(split: HeldOutSplit, rows: np.ndarray, pipe: Any) -> np.ndarray:
    return split.read(rows, pipe)[1].numpy()


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64)


def _features(oracle: OracleClassifier, images: np.ndarray) -> np.ndarray:
    return oracle.features(normalize(torch.from_numpy(images))).numpy().astype(np.float64)


def _target_probability(
    oracle: OracleClassifier, images: dict[str, np.ndarray], targets: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """By label that the outside classifier knows, its mean probability of it for each set of images."""
    scores = {name: oracle(normalize(torch.from_numpy(each))).numpy() for name, each in images.items()}
    column = {name: place for place, name in enumerate(oracle.label_names)}
    return {
        names[target]: {
            name: float(each[targets == target, column[names[target]]].mean()) for name, each in scores.items()
        }
        for target in np.unique(targets).tolist()
        if names[target] in column
    }


def own_scale(pipe: MediffusionGuidedPipeline) -> float:
    """The scale that the checkpoint's own images are generated at."""
    return float(scale_for((pipe.unet.config.guidance_defaults or {}).get("guidance_scale", _SCALE), ["towards"]))


def _notes(num_per_label: dict[str, int], wanted: int, split: str) -> list[str]:
    few = [f"{name} {num}" for name, num in num_per_label.items() if num < wanted]
    if not few:
        return []
    return [
        f"{wanted} images of each label were asked for; half of what split {split!r} holds of a label, the other half "
        f"being its floor, is less for {', '.join(few)}."
    ]
