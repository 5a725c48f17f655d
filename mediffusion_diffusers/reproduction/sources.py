"""Where the own figures of a table come from: results of finished runs, else a model that is measured now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluation.measure_options import MeasureOptions
from .finished_runs import OURS, FinishedRun, find_runs


if TYPE_CHECKING:
    from ..evaluation.counterfactual_study import CounterfactualStudyRunner
    from ..pipelines import MediffusionGuidedPipeline
    from ..reports.pictures.figures import PanelRow


class MissingSource(ValueError):
    """Neither results of a finished run nor what it takes to make them."""


@dataclass
class Sources:
    """What was given, and what was made of it so far.

    Args:
        runs: folders of finished runs; see `find_runs`.
        model: pipeline folder, for what no run holds.
        dataset_dir: prepared dataset to measure it on.
        oracle_path: outside classifier.
        split: of the dataset.
        num_images_per_label: counterfactuals of each label and direction.
        num_generated_per_label: generated images of each label.
        num_inference_steps: of generation.
        guidance_scales: of Figure 7, and the largest of them of Table 11; by default the checkpoint's own.
        batch_size: images at a time.
        seed: of all noise and draws.
        measures: what studies of counterfactuals measure.
        device: where models run.
        dtype: precision of the model's weights.
    """

    runs: Sequence[str] = ()
    model: str | None = None
    dataset_dir: Path | None = None
    oracle_path: str | None = None
    split: str = "test"
    num_images_per_label: int = 16
    num_generated_per_label: int = 300
    num_inference_steps: int = 50
    guidance_scales: Sequence[float] = ()
    batch_size: int = 32
    seed: int = 0
    device: Any = "cpu"
    dtype: Any = None
    measures: MeasureOptions = MeasureOptions()
    _made: dict[str, FinishedRun] = field(default_factory=dict)

    def classifications(self) -> list[FinishedRun]:
        """Evaluations of classifiers.

        Raises:
            MissingSource: without any, or a model to evaluate.
        """
        from ..evaluation.classification_study import study_classification

        if found := find_runs(self.runs, "classification"):
            return found
        model, dataset = self._needed("classification", "model", "dataset_dir")
        place = {"split": self.split, "seed": self.seed, "device": self.device, "dtype": self.dtype}
        return [self._make("classification", lambda: study_classification(model, dataset, **place))]

    def studies(self, direction: str) -> list[FinishedRun]:
        """Counterfactual studies that an outside classifier judged in one direction.

        Raises:
            MissingSource: without any, or a model and an oracle to make one.
        """
        found = find_runs(self.runs, "counterfactuals")
        if judged := [run for run in found if "oracle" in run.results.get(direction, {})]:
            return judged
        self._needed("counterfactuals", "model", "dataset_dir", "oracle_path")

        def study() -> dict[str, Any]:
            return self._runner.run((direction,), self.num_images_per_label, options=self.measures).to_dict()

        made = self._make(direction, study)
        if direction not in made.results:
            raise MissingSource(f"No image of split {self.split!r} fits the direction {direction!r}.")
        return [made]

    def generations(self) -> list[FinishedRun]:
        """Studies of generated images.

        Raises:
            MissingSource: without any, or a model and an oracle to make one.
        """
        from ..evaluation.generation_study import study_generation

        if found := find_runs(self.runs, "generation"):
            return found
        model, dataset, oracle = self._needed("generation", "model", "dataset_dir", "oracle_path")

        def study() -> dict[str, Any]:
            return study_generation(
                model,
                dataset,
                oracle,
                self.split,
                self.num_generated_per_label,
                self.num_inference_steps,
                max(self.guidance_scales, default=None),
                self.batch_size,
                self.seed,
                self.device,
                self.dtype,
            ).results

        return [self._make("generation", study)]

    def panel_rows(self, direction: str, wanted_labels: Sequence[str], num_rows: int) -> list[PanelRow]:
        """The first images of some labels that fit, explained in one direction, as rows of a picture.

        Args:
            direction: `"remove"` or `"add"`.
            wanted_labels: the paper's; as many others if no image of them fits.
            num_rows: at most so many rows, in equal numbers.

        Raises:
            MissingSource: without a model and a dataset, or if no image fits.
        """
        from ..evaluation.counterfactual_selection import Selection
        from ..evaluation.finished_study import CounterfactualStudy, StudiedDirection
        from ..reports.pictures.counterfactual_study import panel_rows

        self._needed("panel", "model", "dataset_dir")
        runner = self._runner
        chosen = runner.select(direction, max(1, num_rows // len(wanted_labels)))
        if not len(chosen):
            raise MissingSource(f"No image of split {self.split!r} fits the direction {direction!r}.")
        found = [runner.label_names[target] for target in np.unique(chosen.targets).tolist()]
        shown = [runner.label_names.index(name) for name in _known(wanted_labels, found)]
        kept = np.isin(chosen.targets, shown)
        chosen = Selection(chosen.rows[kept], chosen.targets[kept])
        made = runner.explain(chosen, direction)
        pairs = zip(chosen.rows.tolist(), chosen.targets.tolist(), strict=True)
        boxes = [[box for box in runner.boxes[row] if int(box["label"]) == target] for row, target in pairs]
        studied = StudiedDirection(made, [], boxes, runner.truth(chosen), {}, {})
        return panel_rows(CounterfactualStudy(runner.label_names), studied, direction)

    def sweep(self, wanted_labels: Sequence[str]) -> tuple[list[str], list[float], list[np.ndarray], np.ndarray]:
        """Images generated towards labels from one noise, with growing guidance (Fig. 7).

        Returns:
            Labels; scales; for each label its images, shape `(num_scales, channels, height, width)` in [0, 1]; and the
            model's probability of the label, shape `(num_labels, num_scales)`.

        Raises:
            MissingSource: without a model.
        """
        import torch

        from ..evaluation.generation_study import own_scale

        self._needed("sweep", "model")
        pipe = self._generator
        largest = own_scale(pipe)
        scales = list(self.guidance_scales) or [0.0, largest / 3, 2 * largest / 3, largest]
        labels = _known(wanted_labels, pipe.label_names)
        pictures, probabilities = [], []
        for name in labels:
            output = pipe(
                towards=name,
                num_inference_steps=self.num_inference_steps,
                guidance_scale=scales,
                generator=torch.Generator().manual_seed(self.seed),
                output_type="pt",
            )
            pictures.append(output.images[:, 0].float().cpu().numpy())
            probabilities.append(output.probabilities[:, 0, pipe.label_names.index(name)].float().cpu().numpy())
        return labels, scales, pictures, np.stack(probabilities)

    def _needed(self, kind: str, *names: str) -> list[str]:
        """What it takes to make something now; refused if some of it is missing, which is named."""
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            options = " ".join(f"--{name}" for name in missing)
            raise MissingSource(_WANTED[kind].format(options=options))
        return [str(getattr(self, name)) for name in names]

    def _make(self, name: str, make: Callable[[], dict[str, Any]]) -> FinishedRun:
        """A result, made once; its method is ours."""
        if name not in self._made:
            self._made[name] = FinishedRun(OURS, make())
        return self._made[name]

    @cached_property
    def _runner(self) -> CounterfactualStudyRunner:
        from ..evaluation.counterfactual_study import CounterfactualStudyRunner

        assert self.model is not None and self.dataset_dir is not None
        place = (self.batch_size, self.seed, self.device, self.dtype)
        return CounterfactualStudyRunner(self.model, self.dataset_dir, self.split, self.oracle_path, None, *place)

    @cached_property
    def _generator(self) -> MediffusionGuidedPipeline:
        from ..pipelines import MediffusionGuidedPipeline

        pipe = MediffusionGuidedPipeline.from_pretrained(self.model, dtype=self.dtype).to(self.device)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def _known(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    """Those of the paper's labels that are there; as many of the first ones if none is."""
    return [name for name in wanted if name in names] or list(names[: len(wanted)])


_WANTED = {
    "classification": "Name a folder with a classification.json in `run`, or give {options} to evaluate a model now.",
    "counterfactuals": (
        "Name a folder in `run` with a counterfactuals.json that an outside classifier judged, or give {options} to "
        "make one now."
    ),
    "generation": "Name a folder with a generation.json in `run`, or give {options} to generate images now.",
    "panel": "Its images are explained now: give {options}.",
    "sweep": "Its images are generated now: give {options}.",
}
