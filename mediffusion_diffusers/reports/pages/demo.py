"""The demo's report, and the check of what it promises."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...atomic_files import read_json
from ..pictures.counterfactual_study import load_figures
from ..pictures.figures import learning_curves
from ..tables import CLASSIFICATION_CAPTION, classification_introduction, classification_table
from .counterfactual_study import RESULTS_FILE, add_counterfactuals, shown_provenance
from .report import HtmlReport, KeyFigure


MODEL_FOLDER = "mediffusion-phantom"
COUNTERFACTUAL_FOLDER = "counterfactuals"
CLASSIFICATION_FILE = "classification.json"
ORACLE_METRICS = "oracle/oracle_metrics.json"
REPORT_FILE = "report.html"


@dataclass(frozen=True)
class DemoCheck:
    """One promise of the demo.

    Args:
        name: what is measured.
        value: the measured figure; None if there were too few images for it.
        target: what it must be, in words.
        passed: whether it is.
    """

    name: str
    value: float | None
    target: str
    passed: bool

    @property
    def sentence(self) -> str:
        """For the terminal."""
        value = "not measured" if self.value is None else f"{self.value:.3f}"
        return f"{self.name}: {value} ({self.target})"


def check_demo(folder: str | Path) -> list[DemoCheck]:
    """Hold the demo's figures against what it promises.

    Args:
        folder: the demo's output folder.

    Returns:
        One check per promise, in the report's order.
    """
    classification, study = _read(folder, CLASSIFICATION_FILE), _read(folder, COUNTERFACTUAL_FOLDER, RESULTS_FILE)
    removal, addition = study["remove"], study["add"]
    beside = removal["controls"]["plain_gradient"]["ours_minus_it"]
    overshoot = abs(removal["own"]["after"] - removal["truth"]["own"]["after"])

    def at_least(name: str, value: float | None, target: float) -> DemoCheck:
        return DemoCheck(name, value, f"at least {target:g}", value is not None and value >= target)

    def at_most(name: str, value: float | None, target: float) -> DemoCheck:
        return DemoCheck(name, value, f"at most {target:g}", value is not None and value <= target)

    return [
        at_least("macro AUROC on held-out phantoms", classification["macro_auroc"], 0.80),
        at_least("findings removed", len(removal["per_label"]), 4),
        at_least("removals", removal["num_images"], 32),
        # Truth: 1 is the unedited image.
        at_most("removals' error to the truth", removal["to_truth"]["error"], 0.95),
        at_most("removals' error minus the plain gradient's in the same region", beside["error"], -0.1),
        at_most("additions' error to the nearest true way", addition["to_truth"]["nearest_error"], 0.95),
        # Realism: 0.5 cannot be told from real images.
        at_most("removals told from true ones, AUROC", removal["realism"]["detector_auroc"], 0.65),
        at_most("the same AUROC minus the plain gradient's", beside["detector_auroc"], -0.05),
        # Calibration, and the outside classifier.
        at_most("model's probability after removing, from the truth's", overshoot, 0.15),
        at_most("Other diff of removals", removal["oracle"]["other_diff"], 0.15),  # 0.11 after the short training
        at_most("oracle's Diff under removal", removal["oracle"]["diff"], -0.3),
        at_least("oracle's Diff under addition", addition["oracle"]["diff"], 0.3),
        at_most("null edit, mean absolute change", removal["change"]["null_l1"], 0.001),
    ]


def write_demo_report(folder: str | Path, seconds: Mapping[str, float], busy_share: float | None = None) -> Path:
    """Write `report.html`: key figures, classifier, learning curves, samples, counterfactuals, provenance.

    Args:
        folder: the demo's output folder, with all its steps done.
        seconds: duration of each step, and of all together, by its title; 0 for a step that was done before.
        busy_share: share of all cores' time that the steps used, in [0, 1].

    Returns:
        Path of the report.
    """
    folder = Path(folder)
    classification, study = _read(folder, CLASSIFICATION_FILE), _read(folder, COUNTERFACTUAL_FOLDER, RESULTS_FILE)
    checks = check_demo(folder)
    labelled = classification["provenance"]["num_labelled_images"]
    report = HtmlReport(
        "Mediffusion on chest phantoms",
        f"One diffusion model classifies, generates and explains; {labelled} of its training images have labels",
    )
    report.add_text(
        "The pictures are generated chest phantoms with five findings, drawn independently of one another. Because "
        "they are generated, the place of every finding is known, and so is the true counterfactual: the same patient "
        "without it. Nothing here was measured on people."
    )
    report.add_key_figures([KeyFigure(check.name, check.value, check.target, check.passed) for check in checks])
    _add_classifier(report, classification)
    _add_training(report, folder)
    add_counterfactuals(report, study, load_figures(folder / COUNTERFACTUAL_FOLDER))
    _add_oracle(report, _read(folder, ORACLE_METRICS))
    report.add_section("Use this checkpoint").add_code(
        "from PIL import Image\n"
        "from mediffusion_diffusers import MediffusionCounterfactualPipeline\n\n"
        f"pipe = MediffusionCounterfactualPipeline.from_pretrained({json.dumps(str(folder / MODEL_FOLDER))})\n"
        'output = pipe(Image.open("phantom.png"), away="Cardiomegaly")\n'
        'output.images[0].save("counterfactual.png")'
    )
    report.add_section("Provenance").add_provenance(shown_provenance(study["provenance"]))
    spent = [[title, round(duration)] for title, duration in seconds.items() if duration]
    if spent:
        report.add_table(["step of this run", "seconds"], spent)
        if busy_share is not None:
            report.add_text(f"{busy_share:.0%} of the time of all cores was used.")
    return report.save(folder / REPORT_FILE)


def _add_classifier(report: HtmlReport, result: Mapping[str, Any]) -> None:
    """AUROC by finding, with its interval over patients."""
    provenance = result["provenance"]
    report.add_section(
        "Classifying",
        f"Held-out phantoms, used once: {classification_introduction(result)} {provenance['num_labelled_images']:,} "
        f"training images have labels ({provenance['labelled_share_percent']:g} %); the diffusion model also saw the "
        "others.",
    )
    report.add_table(*classification_table(result), caption=CLASSIFICATION_CAPTION)


def _add_training(report: HtmlReport, folder: Path) -> None:
    """Learning curves, and what the diffusion model generates."""
    model = folder / MODEL_FOLDER
    report.add_section(
        "Training",
        "First the diffusion model learns from all images without labels, then both losses train the same network.",
    )
    report.add_figure(
        learning_curves(model / "metrics.jsonl"),
        "Losses on training batches and on validation patients, and the validation AUROC; the class loss begins where "
        "its curve does.",
    )
    samples = sorted((model / "samples").glob("step-*.png"))
    if samples:
        picture = Image.open(samples[-1]).convert("L")
        picture = picture.resize((picture.width * 3, picture.height * 3), Image.Resampling.NEAREST)
        report.add_figure(picture, "Phantoms that the final model generates from noise, without guidance.")


def _add_oracle(report: HtmlReport, metrics: Mapping[str, Any]) -> None:
    """Who judged."""
    report.add_section(
        "The oracle",
        "An outside classifier of another architecture, trained on other patients with all their labels, and with "
        "noised and blurred images: an ordinary classifier cannot tell a counterfactual from adversarial noise.",
    )
    rows = [[key.replace("_", " "), value] for key, value in metrics.items() if isinstance(value, (int, float, str))]
    report.add_table(["figure", "value"], rows)


def _read(folder: str | Path, *names: str) -> dict[str, Any]:
    """A JSON file of the demo."""
    return read_json(Path(folder, *names))
