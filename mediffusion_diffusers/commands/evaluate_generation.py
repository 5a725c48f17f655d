"""Measure generated images beside real ones: `generation.json`, KID first, FID, the floor, and a search for copies.

    mediffusion evaluate generation --pretrained_model_name_or_path runs/joint \
        --dataset_dir runs/phantom --oracle_path runs/oracle --output_dir runs/generation
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..atomic_files import write_json
from ..device_options import DeviceOptions
from ..option_parser import OptionParser
from ..options import Range, option, required
from ..output_folder import claimed_folder
from .command import Command, ResultOptions, first_paragraph
from .results import note, say_result, write_results
from .study_options import BatchSize, Seed, StudyOptions


RESULTS_FILE = "generation.json"
DISTANCES_PICTURE, COPIES_PICTURE = "distances.png", "nearest-images.png"


@dataclass(frozen=True)
class Options(StudyOptions):
    """What is generated, and what it is compared with."""

    output_dir: Path = required(f"Folder for {RESULTS_FILE} and its pictures.")
    oracle_path: str = required("Outside classifier, in whose features distances are measured.")
    split: str = option("test", "Split that the real images are drawn from.")
    num_images_per_label: Annotated[int, Range(at_least=3, at_most=2**16)] = option(
        300, "At most so many images of each label; half of the split's are the floor of the other half."
    )
    num_inference_steps: Annotated[int, Range(at_least=1)] = option(50, "Denoising steps over the whole schedule.")
    guidance_scale: Annotated[float | None, Range(at_least=0)] = option(
        None, "Scale of Eq. 2 of the guided images; by default the checkpoint's."
    )
    batch_size: BatchSize = option(32, "Images at a time.")
    seed: Seed = option(0, "Seed of noise and draws.")


def run(options: Options, device_options: DeviceOptions, result_options: ResultOptions) -> None:
    """Generate, measure, write and print.

    Raises:
        ValueError: for arguments or files that cannot be used.
        OSError: if a file cannot be read or written.
    """
    from ..evaluation.generation_study import study_generation
    from ..publishing.record import record_results
    from ..reports.pictures.drawing import save_picture
    from ..reports.pictures.generation import distance_chart, nearest_images

    options.check_pipeline_folder()
    device, dtype = device_options.choose()
    with claimed_folder(options.output_dir) as folder:
        study = study_generation(
            options.pretrained_model_name_or_path,
            options.dataset_dir,
            options.oracle_path,
            options.split,
            options.num_images_per_label,
            options.num_inference_steps,
            options.guidance_scale,
            options.batch_size,
            options.seed,
            device,
            dtype,
        )
        (say_result if result_options.json else _say)(study.results)

        def write(place: Path) -> None:
            save_picture(distance_chart(study.results), place / DISTANCES_PICTURE)
            if study.suspects is not None:
                save_picture(nearest_images(study.suspects), place / COPIES_PICTURE)
            write_json(place / RESULTS_FILE, study.results)  # last: it says that all is done

        note(record_results(options.pretrained_model_name_or_path, "generation", study.results))
        write_results(write, folder, study.results)


def _say(result: dict[str, Any]) -> None:
    """The main figures, for the terminal."""
    from ..reports.generation_tables import generation_table
    from ..reports.tables import format_value

    heading, rows = generation_table(result)
    for row in rows:
        told = ", ".join(f"{name} {format_value(value)}" for name, value in zip(heading[1:], row[1:], strict=True))
        print(f"{row[0]}: {told}")
    for view in ("pixels", "features") if result["memorisation"] else ():
        found = result["memorisation"][view]["generated"]
        share, ends = found["share_nearer_to_training"], found["share_nearer_to_training_interval_95"]
        print(f"nearer to a training than to a held-out image, by {view}: {share:.2f} ({format_value(ends)})")
    for sentence in result["notes"]:
        print(f"Note: {sentence}")


COMMAND = Command(OptionParser(Options, DeviceOptions, ResultOptions, description=first_paragraph(__doc__)), run)
main = COMMAND.main
