"""Fit a calibration of probabilities on the validation split, and store it in the checkpoint's config.

    mediffusion calibrate-probabilities --model runs/joint --dataset_dir runs/phantom

Nothing changes until a call asks for it: `pipe(images, calibrated=True)`, `mediffusion classify --calibrated`. What it
does to probabilities is measured by cross-validation over patients and kept in the checkpoint's folder, in
`probability_calibration.json` and `reliability.png`.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic_files import write_json
from ..choices import CalibrationMethod
from ..device_options import DeviceOptions
from ..evaluation.defaults import CLASSIFICATION_BATCH_SIZE
from ..option_parser import OptionParser
from ..options import option
from ..output_folder import claimed_folder, try_writing
from .command import Command, ResultOptions, first_paragraph
from .results import note, say_result, write_results
from .study_options import BatchSize, StudyOptions


RESULTS_FILE, PICTURE = "probability_calibration.json", "reliability.png"


@dataclass(frozen=True)
class Options(StudyOptions):
    """What is fitted, on which images."""

    split: str = option("validation", "Split to fit on; not test.")
    method: CalibrationMethod | None = option(
        None,
        "A slope and an intercept for each label (platt) or one slope for all (temperature); by default the former "
        "for independent findings and the latter for one class per image.",
    )
    batch_size: BatchSize = option(CLASSIFICATION_BATCH_SIZE, "Images at a time.")
    dry_run: bool = option(False, "Measure, and leave the checkpoint as it is.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split == "test":
            raise ValueError(
                "Probabilities must not be calibrated on the test split, which is used once, for the final figures. "
                "Choose another `split`."
            )


def run(options: Options, device_options: DeviceOptions, result_options: ResultOptions) -> None:
    """Fit, measure, store and print.

    Raises:
        ValueError: for arguments or files that cannot be used.
        OSError: if a file cannot be read or written.
    """
    from ..evaluation.calibration_study import UNET_CONFIG, study_calibration, write_label_calibration
    from ..reports.pictures.calibration import reliability_plot
    from ..reports.pictures.drawing import save_picture

    options.check_pipeline_folder()
    device, dtype = device_options.choose()
    folder = Path(options.pretrained_model_name_or_path)
    claim = nullcontext(folder) if options.dry_run else claimed_folder(folder, "pretrained_model_name_or_path")
    with claim:
        if not options.dry_run:
            try_writing(folder / UNET_CONFIG.parent, "pretrained_model_name_or_path")
        result = study_calibration(
            folder, options.dataset_dir, options.split, options.method, options.batch_size, device, dtype
        )
        (say_result if result_options.json else _say)(result)
        if options.dry_run:
            return

        def write(place: Path) -> None:
            if place == folder:
                write_label_calibration(folder, result["label_calibration"])
            save_picture(reliability_plot(result["before"]["curves"], result["after"]["curves"]), place / PICTURE)
            write_json(place / RESULTS_FILE, result)  # last: it says that all is done

        write_results(write, folder, result)
    note(f"Stored in {folder / UNET_CONFIG}; used where `calibrated` is asked for.")


def _say(result: dict[str, Any]) -> None:
    """The main figures, for the terminal."""
    from ..reports.tables import format_value

    print(f"{result['method']}, {result['num_images']} images of {result['num_patients']} patients, cross-validated:")
    for name, before in result["before"]["per_label"].items():
        after = result["after"]["per_label"][name]
        told = [
            f"{key} {format_value(before[key])} -> {format_value(after[key])}" for key in ("brier", "ece", "slope")
        ]
        print(f"  {name:20} {', '.join(told)}")


COMMAND = Command(OptionParser(Options, DeviceOptions, ResultOptions, description=first_paragraph(__doc__)), run)
main = COMMAND.main
