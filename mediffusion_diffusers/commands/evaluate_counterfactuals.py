"""Explain held-out images and measure the explanations: `counterfactuals.json`, panels and `report.html`.

    mediffusion evaluate counterfactuals --pretrained_model_name_or_path runs/joint \
        --dataset_dir runs/phantom --oracle_path runs/oracle --output_dir runs/counterfactuals
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..counterfactual_options import given_options
from ..device_options import DeviceOptions
from ..evaluation.measure_options import MeasureOptions
from ..option_parser import OptionParser
from ..options import Range, option, required
from ..output_folder import claimed_folder
from .command import Command, ResultOptions, first_paragraph
from .results import note, say_result, write_results
from .study_options import BOTH, BatchSize, DirectionChoice, Seed, StudyOptions, directions_of


if TYPE_CHECKING:
    from ..evaluation.finished_study import CounterfactualStudy


@dataclass(frozen=True)
class Options(StudyOptions):
    """Which images are explained, and who judges."""

    output_dir: Path = required("Folder for the figures.")
    split: str = option("test", "Split to take images from.")
    oracle_path: str | None = option(
        None,
        "Outside classifier that judges: of `mediffusion train oracle`, any image classifier of transformers (folder "
        "or Hub repository), or a saved `XRayVisionClassifier`.",
    )
    oracle_labels: list[str] = option([], "Its names of labels where they differ: Effusion=Pleural_Effusion ...")
    direction: DirectionChoice = option(BOTH, "Whether findings are removed, added, or both.")
    num_images_per_label: Annotated[int, Range(at_least=1)] = option(
        16, "At most so many images for each label and direction; additions are to distinct images."
    )
    only_with_boxes: bool = option(False, "Remove findings only where they have a box.")
    batch_size: BatchSize = option(32, "Images at a time.")
    seed: Seed = option(0, "Seed of noise, controls and drawn boxes.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.oracle_names()

    def oracle_names(self) -> dict[str, str]:
        """The outside classifier's names, by the model's."""
        if not all("=" in pair for pair in self.oracle_labels):
            raise ValueError(
                "`oracle_labels` must be pairs such as Effusion=Pleural_Effusion, but got "
                f"{' '.join(self.oracle_labels)}."
            )
        return {ours: theirs for ours, _, theirs in (pair.partition("=") for pair in self.oracle_labels)}


EditOptions = given_options()


def run(
    options: Options,
    measures: MeasureOptions,
    edit: Any,
    device_options: DeviceOptions,
    result_options: ResultOptions,
) -> None:
    """Run the study, write it and print its main figures.

    Raises:
        ValueError: for arguments or files that cannot be used.
        OSError: if a file cannot be read or written.
    """
    from ..evaluation.counterfactual_study import CounterfactualStudyRunner
    from ..publishing.record import record_results
    from ..reports.pages.counterfactual_study import write_study

    options.check_pipeline_folder()
    device, dtype = device_options.choose()
    with claimed_folder(options.output_dir) as folder:
        runner = CounterfactualStudyRunner(
            options.pretrained_model_name_or_path,
            options.dataset_dir,
            options.split,
            options.oracle_path,
            edit.given(),
            options.batch_size,
            options.seed,
            device,
            dtype,
            options.oracle_names(),
        )
        study = runner.run(
            directions_of(options.direction), options.num_images_per_label, options.only_with_boxes, measures
        )
        if result_options.json:
            say_result(study.to_dict())
        else:
            _say(study)
        # Before the results, which say that all is done.
        note(record_results(options.pretrained_model_name_or_path, "counterfactuals", study.to_dict()))
        report = write_results(lambda place: write_study(study, place), folder, study.to_dict())
    note(f"Report: {report}")


def _say(study: CounterfactualStudy) -> None:
    """The main figures, for the terminal."""
    for direction, studied in study.directions.items():
        results = studied.results
        parts = [f"{results['num_images']} images of {results['num_patients']} patients"]
        parts.append(f"own flips {_number(results['own']['flip_rate'], '.2f')}")
        if "oracle" in results:
            oracle = results["oracle"]
            parts.append(f"oracle Diff {_number(oracle['diff'], '+.3f')}")
            parts.append(f"Other diff {_number(oracle['other_diff'], '.3f')}")
        if "to_truth" in results:
            parts.append(f"error to the truth {_number(results['to_truth']['error'], '.2f')}")
        if "realism" in results:
            parts.append(f"edited-or-real AUROC {_number(results['realism'].get('detector_auroc'), '.2f')}")
        if "localisation" in results:
            ratio = results["localisation"]["vs_original"].get("ratio")
            parts.append(f"inside/outside {_number(ratio, '.2f')}")
        print(f"{direction}: {', '.join(parts)}")
    for sentence in study.notes:
        print(f"Note: {sentence}")


def _number(value: float | None, form: str) -> str:
    return "not defined" if value is None else format(value, form)


COMMAND = Command(
    OptionParser(
        Options, MeasureOptions, EditOptions, DeviceOptions, ResultOptions, description=first_paragraph(__doc__)
    ),
    run,
)
main = COMMAND.main
