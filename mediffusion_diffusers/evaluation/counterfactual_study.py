"""Make counterfactuals of held-out images and measure them, beside the null edit and controls of the same size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from tqdm.auto import tqdm

from ..choices import Direction
from ..image_processor import normalize
from ..models.oracle_classifier import OracleClassifier
from ..pipelines import MediffusionClassifyPipeline, MediffusionCounterfactualPipeline
from ..pipelines.counterfactual import CounterfactualSettings
from ..regions import region_to_pixels
from .classification import nan_to_none
from .counterfactual_selection import SELECTION_RULE, Selection, first_of_each, rows_with_box, select_images
from .counterfactual_summary import LocalisedDirection, summarize_per_label
from .counterfactuals import Counterfactuals, Scores
from .direction_measures import DirectionMeasures
from .finished_study import CounterfactualStudy, StudiedDirection
from .held_out import HeldOutSplit
from .measure_options import MeasureOptions
from .outside_judge import load_judge
from .provenance import checkpoint_hash, describe_provenance, patients_of_oracle
from .references import References
from .sanity_checks import check_sanity
from .study_controls import average_change, other_regions, plain_gradient, random_noise
from .truth import error_to_truth
from .validity import Validity


KEYWORDS = {"remove": "away", "add": "towards"}  # the pipeline's arguments
DIRECTIONS = get_args(Direction)


class CounterfactualStudyRunner:
    """Everything a study needs, loaded once.

    Args:
        pipeline_folder: folder of the pipeline to explain.
        dataset_folder: a prepared dataset.
        split: the split to take images from.
        oracle_path: an outside classifier, see `load_judge`, or None.
        settings: arguments of the pipeline (`strength`, `guidance_scale`, ...); None or missing values are the
            checkpoint's.
        batch_size: images at a time.
        seed: of noise, controls and drawn boxes.
        device: where model and oracle run.
        dtype: precision of the model's weights; the oracle's is float32.
        oracle_labels: the outside classifier's own names of labels, by ours, where they differ.

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
        oracle_labels: Mapping[str, str] | None = None,
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
        self.references = References(self.held_out, self.pipeline)
        self.provenance = describe_provenance(pipeline_folder, self.info, split)
        self.oracle: OracleClassifier | None = None
        if oracle_path is not None:
            self.oracle = self._load_oracle(oracle_path, oracle_labels)

    def _load_oracle(self, path: str | Path, names: Mapping[str, str] | None) -> OracleClassifier:
        """The outside classifier, if it fits; provenance says whether it knows a patient of the split."""
        oracle, folder = load_judge(path, self.label_names, self.info.name, self.device, names)
        if oracle.label_names != self.label_names:
            raise ValueError(
                f"The oracle's labels must be the model's, {self.label_names}, but are {oracle.label_names}."
            )
        channels = self.pipeline.image_processor.config.channels
        if oracle.num_channels not in (channels, None):
            raise ValueError(
                f"The oracle must take the model's images, of {channels} channels, but takes {oracle.num_channels}."
            )
        self.provenance["oracle"] = checkpoint_hash(folder)
        shared = patients_of_oracle(folder, self.info.name, self.patient_ids)
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
        self,
        directions: Sequence[str] = DIRECTIONS,
        num_images_per_label: int = 16,
        only_with_boxes: bool = False,
        options: MeasureOptions | None = None,
    ) -> CounterfactualStudy:
        """Select, explain and measure.

        Args:
            directions: `"remove"`, `"add"` or both.
            num_images_per_label: at most so many images for each label and direction.
            only_with_boxes: remove findings only where they have a box.
            options: what is measured; None measures what the defaults of `MeasureOptions` say.

        Raises:
            ValueError: if no image fits, or the model's or the oracle's scores are not finite.
        """
        if only_with_boxes and "add" not in directions and not any(self.boxes):
            raise ValueError(f"No image of split {self.split!r} has a box: leave out `only_with_boxes`.")
        study = CounterfactualStudy(list(self.label_names))
        for direction in directions:
            chosen = self.select(direction, num_images_per_label, only_with_boxes)
            if len(chosen):
                study.directions[direction] = self._study(chosen, direction, options or MeasureOptions())
            else:
                study.notes.append(f"No image fits the direction {direction!r}: {SELECTION_RULE[direction]}.")
        if not study.directions:
            raise ValueError(f"No image of split {self.split!r} can be explained. {' '.join(study.notes)}")
        study.provenance = self._provenance(study)
        study.notes += self._notes()
        return study

    def select(self, direction: str, num_images_per_label: int, only_with_boxes: bool = False) -> Selection:
        """The images to explain in one direction, by the fixed rule `SELECTION_RULE`."""
        candidates = None
        if only_with_boxes and direction == "remove":
            candidates = rows_with_box(self.boxes, len(self.label_names))
        decisions, patients = self.decisions, self.patient_ids
        return select_images(
            self.labels, decisions, direction, num_images_per_label, self.single_label, candidates, patients
        )

    @cached_property
    def own_probabilities(self) -> np.ndarray:
        """The model's probabilities for every image that has a label, shape of `labels`; NaN for the others."""
        labelled = self.held_out.labelled_rows()
        before = np.full(self.labels.shape, np.nan)
        for part in self._parts(len(labelled), "Classifying"):
            rows, images = self.held_out.read(labelled[part], self.pipeline)
            if len(rows):
                before[rows] = self._own(images)
        self.labels[list(self.held_out.problems)] = np.nan
        return before

    @cached_property
    def decisions(self) -> np.ndarray:
        """What the model decides about every image that has a label, bool, shape of `labels`."""
        before = self.own_probabilities
        thresholds = self.own_thresholds
        if thresholds is not None:
            return before >= thresholds
        known = np.flatnonzero(~np.isnan(before).all(1))
        decisions = np.zeros(before.shape, dtype=bool)
        decisions[known, before[known].argmax(1)] = True
        return decisions

    def _study(self, chosen: Selection, direction: str, options: MeasureOptions) -> StudiedDirection:
        counterfactuals = self.explain(chosen, direction)
        truth = self.truth(chosen)
        validity = Validity(self.pipeline, counterfactuals.originals, self.batch_size, self.seed)
        measures = DirectionMeasures(
            counterfactuals,
            validity,
            self.oracle,
            self.references.real_images(chosen, direction, truth),
            truth,
            self.references.true_ways(chosen, options.num_true_ways) if direction == "add" else None,
        )
        results: dict[str, Any] = {
            "selection": SELECTION_RULE[direction],
            **measures.of_ours(),
            "per_label": summarize_per_label(counterfactuals, self.label_names, truth),
        }
        places = LocalisedDirection.of(self.boxes, chosen, counterfactuals, self.seed)
        # Where a finding is added there is no box to find: it may appear in other places than the annotator's.
        has_boxes = direction == "remove" and places.has_boxes
        if has_boxes:
            results["localisation"] = {
                "vs_original": places.localise(counterfactuals.originals, self.label_names),
                "vs_null": places.localise(counterfactuals.null_images, self.label_names),
            }
        results["controls"] = {}
        control_scores: dict[str, np.ndarray] = {}
        for name, images in self.controls(counterfactuals, chosen, direction, options.region_controls).items():
            changed = self.rescore(counterfactuals, images)
            results["controls"][name] = measures.of_control(name, changed)
            if changed.oracle is not None:
                control_scores[name] = changed.oracle.after
            if has_boxes:
                local = replace(places, images=images).localise(counterfactuals.originals)
                results["controls"][name]["localisation"] = local
        if truth is not None:
            results["truth"] = measures.of_truth(self.rescore(counterfactuals, truth))
            null = error_to_truth(counterfactuals.null_images, counterfactuals.originals, truth)
            results["to_truth"]["null_error"] = null
        if options.checks:
            rows = first_of_each(counterfactuals.targets, options.num_check_images)
            some, seeds = counterfactuals.select(rows), self._seeds(chosen.rows[rows])
            results["checks"] = check_sanity(self, some, seeds, options.checks)
        image_ids = [self.dataset["image_id"][row] for row in chosen.rows.tolist()]
        return StudiedDirection(counterfactuals, image_ids, places.boxes, truth, control_scores, nan_to_none(results))

    def explain(
        self, chosen: Selection, direction: str, per_row: Mapping[str, Sequence[Any]] | None = None
    ) -> Counterfactuals:
        """Run the pipeline with `settings`; noise, if any, belongs to the image and not to its place in a batch.

        Args:
            chosen: images and targets.
            direction: `"remove"` or `"add"`.
            per_row: further arguments of the pipeline, one value for each image.
        """
        images = self.held_out.read(chosen.rows, self.pipeline)[1]
        made = self.edit(images, chosen.targets, direction, self._seeds(chosen.rows), per_row)
        oracle = None
        if self.oracle is not None:
            before, after, null = map(self._ask_oracle, (made.originals, made.images, made.null_images))
            oracle = Scores(before, after, null, self.oracle.thresholds)
        return replace(made, oracle=oracle, patient_ids=[self.patient_ids[row] for row in chosen.rows.tolist()])

    def edit(
        self,
        images: torch.Tensor,
        targets: np.ndarray,
        direction: str,
        seeds: Sequence[int],
        per_row: Mapping[str, Sequence[Any]] | None = None,
        pipeline: MediffusionCounterfactualPipeline | None = None,
    ) -> Counterfactuals:
        """Edit any images with `settings`.

        Args:
            images: shape `(num, channels, height, width)` in [0, 1].
            targets: label to change in each, shape `(num,)`.
            direction: `"remove"` or `"add"`.
            seeds: of each image's noise.
            per_row: further arguments of the pipeline, one value for each image.
            pipeline: another one than the study's, of the same labels.

        Returns:
            The counterfactuals, without an outside classifier's scores.
        """
        pictures: dict[str, list[np.ndarray]] = {"originals": [], "images": [], "null_images": []}
        own: dict[str, list[np.ndarray]] = {"before": [], "after": [], "null": []}
        regions: list[np.ndarray] = []
        for part in self._parts(len(targets), f"Explaining ({direction})"):
            names = [[self.label_names[target]] for target in targets[part].tolist()]
            output = (pipeline or self.pipeline)(
                image=images[part],
                **{KEYWORDS[direction]: names},
                **{**self.settings, **{name: list(values[part]) for name, values in (per_row or {}).items()}},
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
                output_type="pt",
                controls=False,  # the study makes its own, with more steps and on the pixels
            )
            for name in pictures:
                pictures[name].append(getattr(output, name).float().cpu().numpy())
            for name in own:
                own[name].append(getattr(output, f"probabilities_{name}").float().cpu().numpy())
            if output.region is not None:
                regions.append(region_to_pixels(output.region, len(names), output.image_size))
            if not per_row and pipeline is None:
                self.used_settings = output.settings
        originals, edited, null = (np.concatenate(parts) for parts in pictures.values())
        return Counterfactuals(
            originals,
            edited,
            null,
            targets=targets,
            direction=direction,
            own=Scores(**{name: np.concatenate(parts) for name, parts in own.items()}, thresholds=self.own_thresholds),
            regions=np.concatenate(regions) if regions else None,
        )

    def controls(
        self, counterfactuals: Counterfactuals, chosen: Selection, direction: str, with_regions: bool = False
    ) -> dict[str, np.ndarray]:
        """Changed images that explain nothing, by name; see `study_controls`.

        Args:
            counterfactuals: that they stand beside.
            chosen: their images.
            direction: of the study.
            with_regions: also make the same edit in a random region and in the inverse one, as dear as the study's.
        """
        parts = self._parts(len(chosen), f"Controls ({direction})")
        pushed = [plain_gradient(self.pipeline, counterfactuals, part) for part in parts]
        made = {
            "plain_gradient": np.concatenate(pushed),
            "random_noise": random_noise(counterfactuals, self.seed),
            "average_change": average_change(counterfactuals),
        }
        if not with_regions:
            return made
        originals, seeds = torch.from_numpy(counterfactuals.originals), self._seeds(chosen.rows)
        for name, masks in other_regions(counterfactuals, self.pipeline.latent_size, self.seed).items():
            made[name] = self.edit(originals, chosen.targets, direction, seeds, {"mask": list(masks)}).images
        return made

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
        return self.references.truth(chosen)

    def _seeds(self, rows: np.ndarray) -> list[int]:
        """Of each image's noise."""
        return [self.seed * 1_000_003 + int(row) for row in rows]

    def _own(self, images: torch.Tensor) -> np.ndarray:
        """The model's probabilities."""
        scores = self.classifier(images, batch_size=self.batch_size).probabilities
        return _finite(scores, "model")

    def _ask_oracle(self, images: np.ndarray) -> np.ndarray:
        assert self.oracle is not None
        return _finite(self.oracle(normalize(torch.from_numpy(images)), self.batch_size).numpy(), "oracle")

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


def _finite(scores: np.ndarray, whose: str) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise ValueError(f"The {whose}'s scores are not finite: its weights are damaged, or `dtype` is too narrow.")
    return scores
