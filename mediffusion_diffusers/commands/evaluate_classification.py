"""Evaluate a pipeline's classifier on a held-out split: `classification.json`, with intervals and provenance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..atomic_files import write_json
from ..device_options import DeviceOptions
from ..evaluation.defaults import CLASSIFICATION_BATCH_SIZE, NUM_RESAMPLES
from ..option_parser import OptionParser
from ..options import Range, option, required
from ..output_folder import claimed_folder
from .command import Command, ResultOptions, first_paragraph
from .results import note, say_result, write_results
from .study_options import BatchSize, Seed, StudyOptions


RESULTS_FILE = "classification.json"
RELIABILITY_PICTURE, DECISION_PICTURE = "reliability.png", "decision-curves.png"


@dataclass(frozen=True)
class Options(StudyOptions):
    """What is evaluated, and how sure the figures are."""

    output_dir: Path = required("Folder for classification.json, reliability and decision curves.")
    split: str = option("test", "Split to evaluate; thresholds come from validation.")
    num_resamples: Annotated[int, Range(at_least=2, at_most=1_000_000)] = option(
        NUM_RESAMPLES, "Draws of patients for the interval."
    )
    seed: Seed = option(0, "Seed of these draws.")
    batch_size: BatchSize = option(CLASSIFICATION_BATCH_SIZE, "Images at a time.")


def run(options: Options, device_options: DeviceOptions, result_options: ResultOptions) -> None:
    """Evaluate, write and print.

    Raises:
        ValueError: for arguments or files that cannot be used.
        OSError: if a file cannot be read or written.
    """
    from ..evaluation.classification_study import study_classification
    from ..publishing.record import record_results
    from ..reports.pictures.calibration import decision_curves, reliability_plot
    from ..reports.pictures.drawing import save_picture

    options.check_pipeline_folder()
    device, dtype = device_options.choose()
    with claimed_folder(options.output_dir) as folder:
        result = study_classification(
            options.pretrained_model_name_or_path,
            options.dataset_dir,
            options.split,
            options.num_resamples,
            options.seed,
            options.batch_size,
            device,
            dtype,
        )
        (say_result if result_options.json else _say)(result)

        def write(place: Path) -> None:
            calibrated = result.get("calibrated", {}).get("curves")
            save_picture(reliability_plot(result["curves"], calibrated), place / RELIABILITY_PICTURE)
            save_picture(decision_curves(result["curves"]), place / DECISION_PICTURE)
            write_json(place / RESULTS_FILE, result)  # last: it says that all is done

        note(record_results(options.pretrained_model_name_or_path, "classification", result))
        write_results(write, folder, result)


def _say(result: dict[str, Any]) -> None:
    """The main figures, for the terminal."""
    interval, provenance = result["macro_auroc_interval"], result["provenance"]
    print(
        f"{result['num_images']} images of {result['num_patients']} patients of {provenance['data']} "
        f"({provenance['split']})"
    )
    if result["macro_auroc"] is not None:
        ends = "no interval" if interval["low"] is None else f"{interval['low']:.3f} to {interval['high']:.3f}"
        print(f"macro AUROC {result['macro_auroc']:.3f} (95 % interval over patients: {ends})")
    for name, label in result["per_label"].items():
        auroc = "left out: " + result["left_out"][name] if name in result["left_out"] else f"{label['auroc']:.3f}"
        print(f"  {name:20} {auroc}  ({label['num_positives']} of {label['num_positives'] + label['num_negatives']})")
    for sentence in result["notes"]:
        print(f"Note: {sentence}")


COMMAND = Command(OptionParser(Options, DeviceOptions, ResultOptions, description=first_paragraph(__doc__)), run)
main = COMMAND.main
