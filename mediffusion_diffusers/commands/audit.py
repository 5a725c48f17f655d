"""Audit a classifier: AUROC by subgroup, and where its counterfactuals change images: is it the finding?

mediffusion audit --model runs/joint --dataset_dir data/cxr --output_dir audit
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..counterfactual_options import given_options
from ..device_options import DeviceOptions
from ..option_parser import OptionParser
from ..options import Range, option, required
from ..output_folder import claimed_folder
from .command import Command, ResultOptions, first_paragraph
from .results import note, say_result, write_results
from .study_options import BatchSize, Seed, StudyOptions


@dataclass(frozen=True)
class Options(StudyOptions):
    """Which images and findings."""

    output_dir: Path = required("Folder for the page, the pictures and the figures as JSON.")
    split: str = option("test", "Split to take images from.")
    labels: list[str] = option([], "Findings whose counterfactuals are looked at; all by default.")
    num_images_per_label: Annotated[int, Range(at_least=1)] = option(32, "Counterfactuals of each finding at most.")
    num_resamples: Annotated[int, Range(at_least=2)] = option(500, "Resamples of patients, for intervals.")
    batch_size: BatchSize = option(32, "Images at a time.")
    seed: Seed = option(0, "Seed of the noises.")


EditOptions = given_options()


def run(options: Options, edit: Any, device_options: DeviceOptions, result_options: ResultOptions) -> None:
    """Audit, write and say what was found.

    Raises:
        ValueError: for arguments or files that cannot be used.
        OSError: if a file cannot be read or written.
    """
    from ..audit.audit import run_audit
    from ..evaluation.counterfactual_study import CounterfactualStudyRunner
    from ..publishing.record import record_results
    from ..reports.pages.audit import write_audit

    options.check_pipeline_folder()
    device, dtype = device_options.choose()
    with claimed_folder(options.output_dir) as folder:
        runner = CounterfactualStudyRunner(
            options.pretrained_model_name_or_path,
            options.dataset_dir,
            options.split,
            settings=edit.given(),
            batch_size=options.batch_size,
            seed=options.seed,
            device=device,
            dtype=dtype,
        )
        audit = run_audit(runner, options.labels or None, options.num_images_per_label, options.num_resamples)
        results = audit.to_dict()
        # Before the results, which say that all is done.
        note(record_results(options.pretrained_model_name_or_path, "audit", results))
        page = write_results(lambda place: write_audit(audit, place), folder, results)
    if result_options.json:
        say_result(results)
    else:
        for name, finding in results["findings"].items():
            for place in finding["places"]:
                suspect = {True: ", suspect", False: "", None: ", no box to compare with"}[place["is_suspect"]]
                print(f"{name}: {place['name']} in {100 * place['share_of_images']:.0f} % of the images{suspect}")
            if "planted" in finding:
                planted = finding["planted"]
                print(f"{name}: {100 * planted['share_named']:.0f} % of {planted['num_images']} planted markers named")
    for sentence in audit.notes:
        note(f"Note: {sentence}")
    note(f"Page: {page}")


COMMAND = Command(
    OptionParser(Options, EditOptions, DeviceOptions, ResultOptions, description=first_paragraph(__doc__)), run
)
main = COMMAND.main
