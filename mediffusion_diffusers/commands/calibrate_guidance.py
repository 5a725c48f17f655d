"""Choose a checkpoint's guidance scales, and strength and region, on the validation split; store them in its config.

    mediffusion calibrate --pretrained_model_name_or_path runs/joint --dataset_dir runs/phantom

For each direction the scale at which the model sees edited images as it sees real ones: its mean probability after
removing (adding) a finding is that of real validation images without (with) it. Of several `--strengths` and `--masks`
the one that changes least; scales that break images apart are refused. The whole table goes to
`guidance_calibration.json` in the checkpoint's folder, and the choice into its model card.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..atomic_files import write_json
from ..counterfactual_options import given_options, stored_options
from ..device_options import DeviceOptions
from ..evaluation.defaults import MAX_L1, MAX_TRIALS, TOLERANCE
from ..option_parser import OptionParser
from ..options import Range, option
from ..output_folder import claimed_folder, try_writing
from .command import Command, ResultOptions, first_paragraph
from .results import note, say_result, write_results
from .study_options import BOTH, BatchSize, DirectionChoice, StudyOptions, directions_of


if TYPE_CHECKING:
    from ..evaluation.guidance_calibration import GuidanceCalibration, GuidanceChoice


RESULTS_FILE = "guidance_calibration.json"
MASKS = ("auto", "everywhere")


@dataclass(frozen=True)
class Options(StudyOptions):
    """Which settings are tried, and what is asked of them."""

    split: str = option("validation", "Split to choose on; not test.")
    direction: DirectionChoice = option(BOTH, "Whether findings are removed, added, or both.")
    strengths: Annotated[list[float], Range(above=0, at_most=1)] = option(
        [], "Strengths to try; by default the checkpoint's alone."
    )
    masks: list[str] = option(
        [],
        "Where edits may happen: everywhere, or where a first pass changes most (auto); by default as the checkpoint "
        "says.",
    )
    guidance_scale: Annotated[float | None, Range(above=0)] = option(
        None, "Scale that every search begins at, by default the checkpoint's."
    )
    num_images_per_label: Annotated[int, Range(at_least=1)] = option(
        8, "At most so many images for each label and direction."
    )
    tolerance: Annotated[float, Range(above=0, below=1)] = option(
        TOLERANCE, "How close the mean probability after the edit must come to that of real images."
    )
    max_trials: Annotated[int, Range(at_least=1, at_most=64)] = option(
        MAX_TRIALS, "Scales that are tried at most for each direction, strength and region."
    )
    max_l1: Annotated[float, Range(above=0)] = option(
        MAX_L1, "Scales that change a pixel by more than this share of the intensity range, in the mean, are refused."
    )
    batch_size: BatchSize = option(32, "Images at a time.")
    dry_run: bool = option(False, "Measure, and leave the checkpoint as it is.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set(self.masks) <= set(MASKS):
            raise ValueError(f"`masks` must be among {', '.join(MASKS)}, but got {' '.join(self.masks)}.")
        if self.split == "test":
            raise ValueError(
                "Guidance must not be chosen on the test split, which is used once, for the final figures. Choose "
                "another `split`."
            )


# What holds for every trial beside what is tried.
EditOptions = given_options(
    exclude=(
        *("strength", "guidance_scale", "mask", "start_snr"),
        *("target_probability", "max_guidance_scale", "max_strength"),
    )
)


def run(options: Options, edit: Any, device_options: DeviceOptions, result: ResultOptions) -> None:
    """Measure, choose, store and print.

    Raises:
        ValueError: for arguments or files that cannot be used.
        OSError: if a file cannot be read or written.
    """
    from ..evaluation.counterfactual_study import CounterfactualStudyRunner
    from ..evaluation.guidance_calibration import UNET_CONFIG, GuidanceCalibration, write_guidance_defaults
    from ..evaluation.provenance import describe_provenance
    from ..publishing.record import record_results

    options.check_pipeline_folder()
    device, dtype = device_options.choose()
    folder = Path(options.pretrained_model_name_or_path)
    claim = nullcontext(folder) if options.dry_run else claimed_folder(folder, "pretrained_model_name_or_path")
    with claim:
        if not options.dry_run:
            try_writing(folder / UNET_CONFIG.parent, "pretrained_model_name_or_path")
        runner = CounterfactualStudyRunner(
            folder,
            options.dataset_dir,
            options.split,
            settings=edit.given(),
            batch_size=options.batch_size,
            device=device,
            dtype=dtype,
        )
        calibration = GuidanceCalibration(
            runner,
            directions_of(options.direction),
            options.num_images_per_label,
            options.tolerance,
            options.max_l1,
            options.max_trials,
        )
        choice = calibration.choose(options.strengths, list(dict.fromkeys(options.masks)), options.guidance_scale)
        if not result.json:
            _say(calibration, choice)
        stored = {name: value for name, value in edit.given().items() if name in stored_options()}
        provenance = describe_provenance(folder, runner.info, options.split)
        results = {"provenance": provenance, **calibration.to_dict(choice)}
        if result.json:
            say_result(results)
        if options.dry_run:
            return

        def write(place: Path) -> None:
            if place == folder:
                write_guidance_defaults(folder, {**calibration.defaults(choice), **stored})
                note(record_results(folder, "calibration", results))
            write_json(place / RESULTS_FILE, results)  # last: it says that all is done

        write_results(write, folder, results)
        note(f"Stored in {folder / UNET_CONFIG}.")
        if not_stored := sorted(edit.given().keys() - set(stored_options())):
            note(f"A checkpoint cannot store {', '.join(not_stored)}: give them to every call as here.")


def _say(calibration: GuidanceCalibration, choice: GuidanceChoice) -> None:
    """What was measured, for the terminal."""
    for trial in sorted(calibration.trials, key=_order):
        mark = "  <- chosen" if trial in choice.trials else f"  refused: {trial.refused}" if trial.refused else ""
        print(
            f"{trial.direction:<6} strength {trial.strength:<5g} {trial.mask:<10} scale {trial.guidance_scale:<6g} "
            f"p {trial.probability:.3f} (real {trial.wanted:.3f})  flips {trial.flip_rate:.3f}  "
            f"L1 {trial.l1:.4f}{mark}"
        )
    if choice.distance > calibration.tolerance:
        print(
            f"No tried scale brings the model to within {calibration.tolerance} of how it sees real images: these "
            "come closest."
        )
    if len(choice.trials) == 1:
        print(f"Only one direction, {choice.trials[0].direction!r}, was calibrated: its scale will hold for both.")


def _order(trial: Any) -> tuple[Any, ...]:
    return trial.direction, trial.strength, trial.mask, trial.guidance_scale


COMMAND = Command(
    OptionParser(Options, EditOptions, DeviceOptions, ResultOptions, description=first_paragraph(__doc__)), run
)
main = COMMAND.main
