"""The procedures that `compare_procedures.py` compares: what each may choose from, and one way to run them all."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from peers import PEERS, change_images

from mediffusion_diffusers.evaluation.counterfactual_selection import Selection
from mediffusion_diffusers.evaluation.counterfactual_study import KEYWORDS, CounterfactualStudyRunner
from mediffusion_diffusers.evaluation.guidance_calibration import median_without
from mediffusion_diffusers.guidance import ExternalClassifier, build_target
from mediffusion_diffusers.image_processor import normalize
from mediffusion_diffusers.models.oracle_classifier import MIN_INPUT_SIZE, load_oracle
from mediffusion_diffusers.regions import region_to_pixels


BATCH_SIZE = 64
NUM_WAYS = 50  # true ways to add a finding, of which the nearest counts


@dataclass(frozen=True)
class Procedure:
    """A way to make counterfactuals.

    Args:
        name: in the tables.
        variants: settings to choose from, each tried at several scales.
        first_scales: where the search for the scale begins, by direction.
        peer: its name in `PEERS`; None for the pipeline with `variants` as its options.
        is_external: whether a classifier of pixels guides instead of the model's own head.
        is_calibrated: whether removals stop where a calibrated checkpoint lets them.
    """

    name: str
    variants: tuple[dict[str, Any], ...]
    first_scales: dict[str, float]
    peer: str | None = None
    is_external: bool = False
    is_calibrated: bool = False


def _scales(remove: float, add: float) -> dict[str, float]:
    return {"remove": remove, "add": add}


_INVERSION = {
    "start": "inversion",
    "follow_inversion": True,
    "num_inference_steps": 7,
    "guidance_mode": "zt",
    "mask": "auto",
    "detail": "decoded",
}
# Random noise and DDPM, 30 steps instead of all 300.
_PAPER = {"start": "noise", "num_inference_steps": 30, "mask": "everywhere", "detail": "decoded"}
_OWN, _OUTSIDE = {**_PAPER, "guidance_mode": "x0"}, {**_PAPER, "guidance_mode": "external"}
_STRENGTHS = ({"strength": 0.1}, {"strength": 0.3})

_MIRRORED = {"views": "shifts_and_flips"}  # as these models were trained

# What matters most first: a comparison that is cut short has it for all models. The two
# nearest rivals have a variant more than ours: peers choose the least noise that they are offered.
PROCEDURES = (
    Procedure(
        "ours, fast",
        ({"quality": "fast"}, {"quality": "fast", **_MIRRORED}),
        _scales(15.0, 4.0),
        is_calibrated=True,
    ),
    Procedure(
        "ours, best",
        ({"quality": "best"}, {"quality": "best", **_MIRRORED}),
        _scales(15.0, 4.0),
        is_calibrated=True,
    ),
    Procedure("MaskDiME-like", (*_STRENGTHS, {"strength": 0.05}), _scales(3.0, 1.0), "MaskDiME-like"),
    Procedure("FastDiME", (*_STRENGTHS, {"strength": 0.05}), _scales(6.0, 2.0), "FastDiME"),
    Procedure(
        "inversion",
        ({**_INVERSION, "strength": 0.2}, {**_INVERSION, "strength": 0.3}),
        _scales(20.0, 10.0),
    ),
    Procedure("paper", ({**_OWN, "strength": 0.2}, {**_OWN, "strength": 0.3}), _scales(2.0, 1.0)),
    Procedure("ACE", ({"strength": 0.1}, {"strength": 0.2}), _scales(0.2, 0.1), "ACE"),
    Procedure("DiME", _STRENGTHS, _scales(6.0, 2.0), "DiME"),
    Procedure(
        "external guidance",
        ({**_OUTSIDE, "strength": 0.2}, {**_OUTSIDE, "strength": 0.3}),
        _scales(2.0, 1.0),
        is_external=True,
    ),
)


@dataclass(frozen=True)
class Edited:
    """What a procedure made.

    Args:
        images: shape `(num, channels, height, width)` in [0, 1].
        null_images: without guidance, same shape; None where a procedure has no such thing.
        regions: where it was allowed to change them, shape `(num, 1, height, width)`; None for everywhere.
        cpu_seconds: per image.
    """

    images: np.ndarray
    null_images: np.ndarray | None
    regions: np.ndarray | None
    cpu_seconds: float


class Bench:
    """One model, one split, and the images of both directions, each of a patient of its own.

    Args:
        model: pipeline folder.
        dataset_dir: phantoms, whose true counterfactuals are known.
        split: of them.
        oracle_path: the outside classifier that judges.
        external_path: another one that may guide.
        num_images_per_label: for each finding and direction at most.
    """

    def __init__(
        self,
        model: Path,
        dataset_dir: Path,
        split: str,
        oracle_path: Path,
        external_path: Path,
        num_images_per_label: int,
    ):
        self.runner = CounterfactualStudyRunner(model, dataset_dir, split, oracle_path, batch_size=BATCH_SIZE)
        self.pipe, self.label_names = self.runner.pipeline, self.runner.label_names
        network = load_oracle(external_path).model.requires_grad_(False)
        self.external = ExternalClassifier(network, (0.5,), (0.5,), image_size=MIN_INPUT_SIZE).eval()
        self.num_images_per_label = num_images_per_label
        self.chosen = {direction: self._choose(direction) for direction in KEYWORDS}
        self.originals = {direction: self.read(chosen).numpy() for direction, chosen in self.chosen.items()}
        self.truth = {direction: self.runner.truth(chosen) for direction, chosen in self.chosen.items()}

    def _choose(self, direction: str) -> Selection:
        """By the fixed rule, in turns, and of each patient one image."""
        candidates = self.runner.select(direction, len(self.runner.labels))
        waiting = {int(target): [] for target in np.unique(candidates.targets)}  # type: ignore[var-annotated]
        for row, target in zip(candidates.rows.tolist(), candidates.targets.tolist(), strict=True):
            waiting[target].append(row)
        taken: dict[int, list[int]] = {target: [] for target in waiting}
        seen: set[str] = set()
        for _ in range(self.num_images_per_label):
            for target, rows in waiting.items():
                row = next((row for row in rows if self.runner.patient_ids[row] not in seen), None)
                if row is not None:
                    taken[target].append(row)
                    seen.add(self.runner.patient_ids[row])
        rows = [row for chosen in taken.values() for row in sorted(chosen)]
        return Selection(np.array(rows), np.repeat(list(taken), [len(chosen) for chosen in taken.values()]))

    def patients(self, direction: str) -> list[str]:
        """Patient of each image."""
        return [self.runner.patient_ids[row] for row in self.chosen[direction].rows.tolist()]

    def read(self, chosen: Selection) -> torch.Tensor:
        """The images, shape `(num, channels, height, width)` in [0, 1]."""
        return self.runner.held_out.read(chosen.rows, self.pipe)[1]

    @cached_property
    def ways(self) -> list[np.ndarray]:
        """True ways to add each addition's finding."""
        return self.runner.references.true_ways(self.chosen["add"], NUM_WAYS)

    def probabilities(self, images: np.ndarray, procedure: Procedure) -> np.ndarray:
        """Of the classifier that guides the procedure, shape `(num, num_labels)`."""
        pixels = torch.from_numpy(images)
        if not procedure.is_external:
            return self.runner.classifier(pixels, batch_size=BATCH_SIZE).probabilities
        with torch.no_grad():
            return self.external(normalize(pixels)).sigmoid().numpy()

    def wanted_probability(self, direction: str, procedure: Procedure) -> float:
        """Mean probability that real images without the finding (where it is removed), or with it, are given."""
        is_known = ~np.isnan(self.runner.labels).any(1)
        rows = np.flatnonzero(is_known)
        real = self.probabilities(self.runner.held_out.read(rows, self.pipe)[1].numpy(), procedure)
        has_finding = self.runner.labels[rows] == (direction == "add")
        means = [real[has_finding[:, label], label].mean() for label in range(real.shape[1])]
        return float(np.mean([means[target] for target in self.chosen[direction].targets.tolist()]))

    def stop(self, procedure: Procedure, direction: str) -> dict[str, Any]:
        """Where our removals stop, as calibration stores it beside their scale; nothing for any other procedure."""
        if direction != "remove" or not procedure.is_calibrated:
            return {}
        stop = median_without(self.runner.own_probabilities, self.runner.labels, self.chosen[direction].targets)
        return {"stop_probability": {"away": stop}}

    def edit(
        self, procedure: Procedure, direction: str, settings: dict[str, Any], rows: slice | None = None
    ) -> Edited:
        """Change the images of a direction, or some of them.

        Args:
            procedure: how.
            direction: `"remove"` or `"add"`.
            settings: one of its variants and a `guidance_scale`.
            rows: which images.
        """
        chosen = self.chosen[direction]
        if rows is not None:
            chosen = Selection(chosen.rows[rows], chosen.targets[rows])
        run = self._by_pipeline if procedure.peer is None else self._by_peer
        parts = []
        images = self.read(chosen)
        started = time.process_time()
        for first in range(0, len(chosen), BATCH_SIZE):
            part = slice(first, first + BATCH_SIZE)
            seeds = [torch.Generator().manual_seed(int(row)) for row in chosen.rows[part]]
            names = [[self.label_names[target]] for target in chosen.targets[part].tolist()]
            parts.append(run(procedure, images[part], {KEYWORDS[direction]: names}, settings, seeds))
        seconds = (time.process_time() - started) / len(chosen)
        joined = [None if found[0] is None else np.concatenate(found) for found in zip(*parts, strict=True)]
        return Edited(*joined, cpu_seconds=seconds)  # type: ignore[misc]

    def _by_pipeline(
        self, procedure: Procedure, images: torch.Tensor, labels: dict, settings: dict, seeds: list[torch.Generator]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        kind = DDPMScheduler if settings.get("start") == "noise" else DDIMScheduler
        self.pipe.scheduler = kind.from_config(self.pipe.scheduler.config)
        outside = {"classifier": self.external} if procedure.is_external else {}
        output = self.pipe(
            image=images, **labels, **settings, **outside, generator=seeds, output_type="pt", controls=False
        )
        region = output.region
        if region is not None:
            region = region_to_pixels(region, len(images), output.image_size)
        return output.images.float().numpy(), output.null_images.float().numpy(), region

    def _by_peer(
        self, procedure: Procedure, images: torch.Tensor, labels: dict, settings: dict, seeds: list[torch.Generator]
    ) -> tuple[np.ndarray, None, None]:
        assert procedure.peer is not None
        kind = self.pipe.unet.config.problem_type
        target = build_target(labels.get("towards"), labels.get("away"), len(images), self.label_names, kind)
        change = PEERS[procedure.peer][1](**settings)
        return change_images(self.pipe, images, target, procedure.peer, change, seeds).numpy(), None, None
