"""Make counterfactuals of held-out images and measure them, beside the null edit and controls of the same size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from tqdm.auto import tqdm

from ..choices import Direction
from ..controls import plain_gradient_control, random_noise_control
from ..data.phantom import PHANTOM_VERSION, true_counterfactual
from ..guidance import build_target, sampling_mode
from ..image_processor import normalize
from ..models.oracle_classifier import OracleClassifier, load_oracle
from ..pipelines import MediffusionClassifyPipeline, MediffusionCounterfactualPipeline
from ..pipelines.counterfactual import CounterfactualSettings
from ..regions import region_to_pixels
from .counterfactual_selection import (
    SELECTION_RULE,
    Selection,
    rows_with_box,
    select_images,
    target_masks,
    wrong_masks,
)
from .counterfactual_summary import localise, localise_per_label, summarize, summarize_per_label
from .counterfactuals import Counterfactuals, Scores, mean_absolute_change
from .finished_study import CounterfactualStudy, StudiedDirection
from .held_out import HeldOutSplit
from .localisation import LocalisationCase
from .provenance import checkpoint_hash, describe_provenance, patients_of_oracle


KEYWORDS = {"remove": "away", "add": "towards"}  # the pipeline's arguments
DIRECTIONS = get_args(Direction)


class CounterfactualStudyRunner:
    """Everything a study needs, loaded once.

    Args:
        pipeline_folder: folder of the pipeline to explain.
        dataset_folder: a prepared dataset.
        split: the split to take images from.
        oracle_path: folder of an outside classifier, or None.
        settings: arguments of the pipeline (`strength`, `guidance_scale`, ...); None or missing values are the
            checkpoint's.
        batch_size: images at a time.
        seed: of noise, controls and drawn boxes.
        device: where model and oracle run.
        dtype: precision of the model's weights; the oracle's is float32.

    Raises:
        ValueError: if model, dataset and oracle do not fit one another, or the settings do not fit the model.
    """

    def __init__(
        self,
        pipeline_folder: str | Path,
        dataset_folder: str | Path,
        split: str = "test",
        oracle_path: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        batch_size: int = 32,
        seed: int = 0,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.pipeline = MediffusionCounterfactualPipeline.from_pretrained(pipeline_folder, dtype=dtype).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.classifier = MediffusionClassifyPipeline(**self.pipeline.components)
        self.classifier.set_progress_bar_config(disable=True)
        self.device, self.label_names = torch.device(device), self.pipeline.label_names
        self.settings = {name: value for name, value in (settings or {}).items() if value is not None}
        defaults = self.pipeline.unet.config.guidance_defaults
        CounterfactualSettings.resolve(self.settings, defaults, self.pipeline.scheduler)
        self.held_out = HeldOutSplit(dataset_folder, split, self.label_names)
        self.info, self.dataset = self.held_out.info, self.held_out.dataset
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.single_label = not self.info.is_multi_label
        self.labels, self.patient_ids = self.held_out.labels, self.held_out.patient_ids
        self.boxes: list[list[dict[str, float]]] = self.dataset["boxes"][:]
        self.provenance = describe_provenance(pipeline_folder, self.info, split)
        self.oracle: OracleClassifier | None = None
        if oracle_path is not None:
            self.oracle = self._load_oracle(oracle_path)

    def _load_oracle(self, path: str | Path) -> OracleClassifier:
        """The outside classifier, if it fits; provenance says whether it knows a patient of the split."""
        oracle = load_oracle(path, self.device)
        if oracle.label_names != self.label_names:
            raise ValueError(
                f"The oracle's labels must be the model's, {self.label_names}, but are {oracle.label_names}."
            )
        channels = self.pipeline.image_processor.config.channels
        if oracle.model.config.num_channels != channels:
            raise ValueError(
                f"The oracle must take the model's images, of {channels} channels, but takes "
                f"{oracle.model.config.num_channels}."
            )
        self.provenance["oracle"] = checkpoint_hash(path)
        shared = patients_of_oracle(path, self.info.name, self.patient_ids)
        if shared is not None:
            self.provenance["patients_shared_with_oracle"] = shared
        return oracle

    @property
    def own_thresholds(self) -> np.ndarray | None:
        """The model's thresholds; None for one class per image."""
        if self.single_label:
            return None
        stored = self.pipeline.unet.config.label_thresholds
        return np.full(len(self.label_names), 0.5) if stored is None else np.asarray(stored, dtype=np.float64)

    def run(
        self, directions: Sequence[str] = DIRECTIONS, num_images_per_label: int = 16, only_with_boxes: bool = False
    ) -> CounterfactualStudy:
        """Select, explain and measure.

        Args:
            directions: `"remove"`, `"add"` or both.
            num_images_per_label: at most so many images for each label and direction.
            only_with_boxes: remove findings only where they have a box.

        Raises:
            ValueError: if no image fits, or the model's or the oracle's scores are not finite.
        """
        if only_with_boxes and "add" not in directions and not any(self.boxes):
            raise ValueError(f"No image of split {self.split!r} has a box: leave out `only_with_boxes`.")
        study = CounterfactualStudy(list(self.label_names))
        for direction in directions:
            chosen = self.select(direction, num_images_per_label, only_with_boxes)
            if len(chosen):
                study.directions[direction] = self._study(chosen, direction)
            else:
                study.notes.append(f"No image fits the direction {direction!r}: {SELECTION_RULE[direction]}.")
        if not study.directions:
            raise ValueError(f"No image of split {self.split!r} can be explained. {' '.join(study.notes)}")
        study.provenance = self._provenance(study)
        study.notes += self._notes()
        return study

    def select(self, direction: str, num_images_per_label: int, only_with_boxes: bool = False) -> Selection:
        """The images to explain in one direction, by the fixed rule `SELECTION_RULE`."""
        decisions = self._decisions
        candidates = None
        if only_with_boxes and direction == "remove":
            candidates = rows_with_box(self.boxes, len(self.label_names))
        return select_images(
            self.labels,
            decisions,
            direction,
            num_images_per_label,
            self.single_label,
            candidates,
            self.patient_ids,
        )

    @cached_property
    def _decisions(self) -> np.ndarray:
        """What the model decides about every image that has a label, bool, shape of `labels`."""
        labelled = self.held_out.labelled_rows()
        before = np.full(self.labels.shape, np.nan)
        for part in self._parts(len(labelled), "Classifying"):
            rows, images = self.held_out.read(labelled[part], self.pipeline)
            if len(rows):
                before[rows] = self._own(images)
        self.labels[list(self.held_out.problems)] = np.nan
        thresholds = self.own_thresholds
        if thresholds is not None:
            return before >= thresholds
        known = np.flatnonzero(~np.isnan(before).all(1))
        decisions = np.zeros(before.shape, dtype=bool)
        decisions[known, before[known].argmax(1)] = True
        return decisions

    def _study(self, chosen: Selection, direction: str) -> StudiedDirection:
        counterfactuals = self.explain(chosen, direction)
        height, width = counterfactuals.images.shape[-2:]
        masks = target_masks(self.boxes, chosen, height, width)
        wrong = wrong_masks(self.boxes, chosen, height, width, self.seed)
        truth = self.truth(chosen)
        results: dict[str, Any] = {
            "selection": SELECTION_RULE[direction],
            **summarize(counterfactuals),
            "per_label": summarize_per_label(counterfactuals, self.label_names),
        }
        patients = counterfactuals.patients
        cases = {
            name: LocalisationCase(counterfactuals.images - others, masks, chosen.targets, wrong)
            for name, others in (("vs_original", counterfactuals.originals), ("vs_null", counterfactuals.null_images))
        }
        # Where a finding is added there is no box to find: it may appear in other places than the annotator's.
        has_boxes = direction == "remove" and bool(masks.any())
        if has_boxes:
            results["localisation"] = {
                name: {**localise(case, patients), "per_label": localise_per_label(case, patients, self.label_names)}
                for name, case in cases.items()
            }
        results["controls"] = {}
        control_scores: dict[str, np.ndarray] = {}
        for name, images in self.controls(counterfactuals, chosen, direction).items():
            changed = self.rescore(counterfactuals, images)
            results["controls"][name] = summarize(changed)
            if changed.oracle is not None:
                control_scores[name] = changed.oracle.after
            if has_boxes:
                case = LocalisationCase(images - counterfactuals.originals, masks, chosen.targets, wrong)
                results["controls"][name]["localisation"] = localise(case, patients)
            if truth is not None:
                results["controls"][name]["cosine_to_truth"] = cosine_to_truth(changed, truth)
        if truth is not None:
            results["cosine_to_truth"] = cosine_to_truth(counterfactuals, truth)
            results["truth"] = summarize(self.rescore(counterfactuals, truth))
            distance = mean_absolute_change(counterfactuals.images, truth)
            results["truth"]["l1_of_counterfactual"] = float(distance.mean())
        rows = chosen.rows.tolist()
        boxes = [
            [box for box in self.boxes[row] if int(box["label"]) == target]
            for row, target in zip(rows, chosen.targets.tolist(), strict=True)
        ]
        image_ids = [self.dataset["image_id"][row] for row in rows]
        return StudiedDirection(counterfactuals, image_ids, boxes, truth, control_scores, results)

    def explain(self, chosen: Selection, direction: str) -> Counterfactuals:
        """Run the pipeline with `settings`; noise, if any, belongs to the image and not to its place in a batch."""
        images: dict[str, list[np.ndarray]] = {"originals": [], "images": [], "null_images": []}
        own: dict[str, list[np.ndarray]] = {"before": [], "after": [], "null": []}
        regions: list[np.ndarray] = []
        for part in self._parts(len(chosen), f"Explaining ({direction})"):
            rows = chosen.rows[part]
            output = self.pipeline(
                image=self.held_out.read(rows, self.pipeline)[1],
                **{KEYWORDS[direction]: [[self.label_names[target]] for target in chosen.targets[part].tolist()]},
                **self.settings,
                generator=[torch.Generator().manual_seed(self.seed * 1_000_003 + int(row)) for row in rows],
                output_type="pt",
                controls=False,  # the study makes its own, with more steps and on the pixels
            )
            for name in images:
                images[name].append(getattr(output, name).float().cpu().numpy())
            for name in own:
                own[name].append(getattr(output, f"probabilities_{name}").float().cpu().numpy())
            if output.region is not None:
                regions.append(region_to_pixels(output.region, len(rows), output.image_size))
            self.used_settings = output.settings
        pictures = {name: np.concatenate(parts) for name, parts in images.items()}
        scores = Scores(**{name: np.concatenate(parts) for name, parts in own.items()}, thresholds=self.own_thresholds)
        oracle = None
        if self.oracle is not None:
            before, after, null = (self._ask_oracle(pictures[name]) for name in images)
            oracle = Scores(before, after, null, self.oracle.thresholds)
        return Counterfactuals(
            **pictures,
            targets=chosen.targets,
            direction=direction,
            own=scores,
            oracle=oracle,
            regions=np.concatenate(regions) if regions else None,
            patient_ids=[self.patient_ids[row] for row in chosen.rows.tolist()],
        )

    def controls(self, counterfactuals: Counterfactuals, chosen: Selection, direction: str) -> dict[str, np.ndarray]:
        """Plain gradient, in the counterfactual's region, and random noise, with the L1 of each counterfactual."""
        l1 = mean_absolute_change(counterfactuals.images, counterfactuals.originals)
        pushed, noised = [], []
        for part in self._parts(len(chosen), f"Controls ({direction})"):
            originals, size = self._tensor(counterfactuals.originals[part]), self._tensor(l1[part])
            names = [[self.label_names[target]] for target in chosen.targets[part].tolist()]
            towards, away = (names, None) if direction == "add" else (None, names)
            problem_type = self.pipeline.unet.config.problem_type
            target = build_target(towards, away, len(names), self.label_names, problem_type)

            def log_probability(pixels: torch.Tensor, target: Any = target) -> torch.Tensor:
                latents = self.pipeline.encode_pixels(normalize(pixels))
                return target.log_prob(self.pipeline.classify_latents(latents))

            regions = counterfactuals.regions
            mask = 1.0 if regions is None else self._tensor(regions[part])
            with sampling_mode(self.pipeline.vae, self.pipeline.unet):
                pushed.append(plain_gradient_control(originals, size, log_probability, mask=mask).cpu().numpy())
            generator = torch.Generator().manual_seed(self.seed + int(chosen.rows[part][0]))
            noised.append(random_noise_control(originals, size, generator).cpu().numpy())
        return {"plain_gradient": np.concatenate(pushed), "random_noise": np.concatenate(noised)}

    def rescore(self, counterfactuals: Counterfactuals, images: np.ndarray) -> Counterfactuals:
        """The same originals and null edits with other changed images."""
        own = np.concatenate(
            [self._own(torch.from_numpy(images[part])) for part in self._parts(len(images), "Scoring")]
        )
        oracle = counterfactuals.oracle
        return replace(
            counterfactuals,
            images=images,
            own=replace(counterfactuals.own, after=own),
            oracle=None if oracle is None else replace(oracle, after=self._ask_oracle(images)),
        )

    def truth(self, chosen: Selection) -> np.ndarray | None:
        """True counterfactuals, if the dataset is a phantom's."""
        rows = [self.dataset[row] for row in chosen.rows.tolist()]
        if not all(json.loads(row["metadata"]).get("phantom_version") == PHANTOM_VERSION for row in rows):
            return None
        size = self.pipeline.image_size[0]
        pairs = zip(rows, chosen.targets.tolist(), strict=True)
        return np.stack([true_counterfactual(row, self.label_names[target], size).numpy() for row, target in pairs])

    def _own(self, images: torch.Tensor) -> np.ndarray:
        """The model's probabilities."""
        scores = self.classifier(images, batch_size=self.batch_size).probabilities
        return _finite(scores, "model")

    def _ask_oracle(self, images: np.ndarray) -> np.ndarray:
        assert self.oracle is not None
        return _finite(self.oracle(normalize(torch.from_numpy(images)), self.batch_size).numpy(), "oracle")

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device)

    def _parts(self, num: int, description: str) -> list[slice] | tqdm:
        """Slices of at most `batch_size`, with a progress bar where there are several."""
        parts = [slice(first, first + self.batch_size) for first in range(0, num, self.batch_size)]
        return tqdm(parts, desc=description, unit="batch", disable=len(parts) < 2)

    def _provenance(self, study: CounterfactualStudy) -> dict[str, Any]:
        """What the tables must name."""
        image_ids = {direction: studied.image_ids for direction, studied in study.directions.items()}
        if self.held_out.problems:
            image_ids["unreadable"] = self.held_out.unreadable()
        return {
            **self.provenance,
            "selection": {direction: SELECTION_RULE[direction] for direction in study.directions},
            "study_seed": self.seed,
            "settings": self.used_settings,
            "image_ids": image_ids,
        }

    def _notes(self) -> list[str]:
        notes = self.held_out.notes()
        if self.used_settings.get("mask") == "auto":
            notes.append(
                "Images were edited within a region only, where a first edit changed them most: outside of it nothing "
                "changes, so that any box it lies in gets a large ratio of change inside to outside. Read it beside "
                "the wrong box. The plain gradient is confined to the same region."
            )
        if self.oracle is None:
            notes.append("No outside classifier: the model's own flips prove nothing by themselves.")
        if shared := self.provenance.get("patients_shared_with_oracle"):
            notes.append(f"The oracle was trained on {shared} patients of this split: its verdict is not independent.")
        return notes


def cosine_to_truth(counterfactuals: Counterfactuals, truth: np.ndarray) -> float:
    """Cosine between the change that was made and the one that should have been, mean over images; 1 is perfect.

    Args:
        counterfactuals: what was made.
        truth: true counterfactuals, shape of the images.
    """
    change = (counterfactuals.images - counterfactuals.originals).reshape(len(truth), -1)
    wanted = (truth - counterfactuals.originals).reshape(len(truth), -1)
    norms = np.linalg.norm(change, axis=1) * np.linalg.norm(wanted, axis=1)
    return float(np.mean((change * wanted).sum(1) / np.maximum(norms, 1e-12)))


def _finite(scores: np.ndarray, whose: str) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise ValueError(f"The {whose}'s scores are not finite: its weights are damaged, or `dtype` is too narrow.")
    return scores
