"""Make the paper's tables and figures again, each beside what is printed there: JSON, Markdown, a picture.

    mediffusion reproduce --table 1 3 --run runs --output_dir reproduced
    mediffusion reproduce --table 4 5 --figure 4 --run runs/counterfactuals --output_dir reproduced
    mediffusion reproduce --table 11 --figure 3 7 --model runs/joint --dataset_dir data/cxr --oracle_path runs/oracle \
        --output_dir reproduced

Tables 1 to 3 and 8 to 10 come from classification.json of finished runs; 4 to 7 and Figures 4 and 8 from
counterfactuals.json, 11 from generation.json. What no run holds is measured now, if a model is given. Without --table
and --figure: all that can be made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..device_options import DeviceOptions
from ..evaluation.measure_options import MeasureOptions
from ..option_parser import OptionParser
from ..options import Range, check_options, option, required
from ..output_folder import claimed_folder
from .command import Command, ResultOptions
from .results import note, say_result, write_results
from .study_options import MODEL_ALIASES, BatchSize, Seed


@dataclass(frozen=True)
class Options:
    """Which tables and figures, and what they are made of.

    Raises:
        ValueError: for an option outside its range, or a table or figure that is not the paper's.
    """

    output_dir: Path = required("Folder for a JSON, Markdown and PNG file of each, and reproduction.md with all.")
    table: list[int] = option([], "Tables, among 1 to 11.")
    figure: list[int] = option([], "Figures, among 3, 4, 5, 7 and 8.")
    run: list[str] = option(
        [],
        "Folders of finished runs, searched for classification.json, counterfactuals.json and generation.json; "
        "NAME=FOLDER says what the tables call the method.",
    )
    pretrained_model_name_or_path: str | None = option(
        None, "Folder of a pipeline, for what no run holds.", aliases=MODEL_ALIASES
    )
    dataset_dir: Path | None = option(None, "Prepared dataset to measure it on.")
    oracle_path: str | None = option(None, "Outside classifier (`mediffusion train oracle`).")
    split: str = option("test", "Split of the dataset.")
    num_images_per_label: Annotated[int, Range(at_least=1)] = option(
        16, "Counterfactuals of each label and direction, at most."
    )
    num_generated_per_label: Annotated[int, Range(at_least=3, at_most=2**16)] = option(
        300, "Generated images of each label, at most."
    )
    num_inference_steps: Annotated[int, Range(at_least=1)] = option(50, "Denoising steps of generated images.")
    guidance_scale: Annotated[list[float], Range(at_least=0)] = option(
        [], "Scales of Figure 7, the largest also of Table 11; by default from 0 to the checkpoint's own."
    )
    batch_size: BatchSize = option(32, "Images at a time.")
    seed: Seed = option(0, "Seed of all noise and draws.")

    def __post_init__(self) -> None:
        check_options(self)
        for family in ("table", "figure"):
            self._check_numbers(family, getattr(self, family))

    def _check_numbers(self, family: str, numbers: list[int]) -> None:
        from ..reproduction.published import item_numbers

        known = item_numbers(family) if numbers else []
        for number in numbers:
            if number not in known:
                raise ValueError(f"`{family}` must be among {', '.join(map(str, known))}, but got {number}.")

    def names(self) -> list[str]:
        """The items that are asked for by number, each once."""
        named = [f"table-{number}" for number in self.table] + [f"figure-{number}" for number in self.figure]
        return list(dict.fromkeys(named))


def run(
    options: Options, measures: MeasureOptions, device_options: DeviceOptions, result_options: ResultOptions
) -> None:
    """Make, write and tell.

    Raises:
        ValueError: for arguments or files that cannot be used, or if an item that was asked for cannot be made.
        OSError: if a file cannot be read or written.
    """
    from ..reproduction.making import reproduce
    from ..reproduction.sources import Sources
    from ..reproduction.writing import write_reproductions

    device, dtype = device_options.choose()
    sources = Sources(
        options.run,
        options.pretrained_model_name_or_path,
        options.dataset_dir,
        options.oracle_path,
        options.split,
        options.num_images_per_label,
        options.num_generated_per_label,
        options.num_inference_steps,
        options.guidance_scale,
        options.batch_size,
        options.seed,
        device,
        dtype,
        measures,
    )
    with claimed_folder(options.output_dir) as folder:
        made, not_made = reproduce(options.names(), sources)
        results = [each.to_dict() for each in made]
        page = write_results(lambda place: write_reproductions(made, not_made, place), folder, {"items": results})
    if result_options.json:
        say_result(results)
    for name, reason in not_made.items():
        note(f"Not made: {name}. {reason}")
    note(f"Written: {page}")


COMMAND = Command(OptionParser(Options, MeasureOptions, DeviceOptions, ResultOptions, description=__doc__), run)
main = COMMAND.main
