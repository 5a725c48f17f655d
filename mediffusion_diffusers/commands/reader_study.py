"""A blinded reader study (App. H): make a questionnaire, collect the answers, plot what they say.

Examples:

    mediffusion reader-study make --model example --output_dir study
    mediffusion reader-study make --table pairs.csv --output_dir study
    mediffusion reader-study collect answers/*.csv --key_file study-key.json --output answers.csv
    mediffusion reader-study plot answers.csv --output_dir study-results
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from ..choices import ReaderMethod
from ..counterfactual_options import given_options
from ..device_options import DeviceOptions
from ..option_parser import OptionParser
from ..options import Range, check_options, option, required
from ..output_folder import claimed_folder, writable_folder
from .command import Command, ResultOptions, first_paragraph
from .input_images import EXAMPLE, ModelOptions
from .results import note, say_result, write_results
from .study_options import Seed


if TYPE_CHECKING:
    import numpy as np

    from ..reader_study.pairs import ImagePair

READER_METHODS = get_args(ReaderMethod)
QUESTIONNAIRE_FILE = "questionnaire.html"


@dataclass(frozen=True)
class MakeOptions:
    """Which pairs, and where the questionnaire goes.

    Raises:
        ValueError: for an option outside its range, or two sources of pairs.
    """

    output_dir: Path = required(f"Folder for {QUESTIONNAIRE_FILE}, which is what readers get.")
    key_file: Path | None = option(
        None, "File that says which pair is what; by default beside `output_dir`. Keep it from the readers."
    )
    table: Path | None = option(
        None, "CSV file of images that are there: case, label, direction (remove or add), method, original, modified."
    )
    images_dir: Path | None = option(
        None, "Folder of images that are there: original/CASE.png, and METHOD/remove/LABEL/CASE.png or .../add/..."
    )
    dataset_dir: Path | None = option(None, "Prepared dataset, whose images `methods` change; else the example's.")
    split: str = option("test", "Of the dataset.")
    methods: list[str] = option(list(READER_METHODS), "Who changes the images of the dataset or the example.")
    num_cases: Annotated[int, Range(at_least=1, at_most=1000)] = option(
        10, "Cases of each direction, as in the paper; every method answers each of them."
    )
    seed: Seed | None = option(None, "Seed of cases, orders and names; by default one that only the key knows.")

    def __post_init__(self) -> None:
        check_options(self)
        given = [name for name in ("table", "images_dir", "dataset_dir") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"Give one source of images, but got {' and '.join(f'`{name}`' for name in given)}.")
        if not set(self.methods) <= set(READER_METHODS) or len(set(self.methods)) != len(self.methods):
            raise ValueError(
                f"`methods` must be among {', '.join(READER_METHODS)}, each once, but got {' '.join(self.methods)}."
            )

    def key_place(self) -> Path:
        """Where the key goes: never among what readers get, unless asked."""
        return self.key_file or self.output_dir.parent / f"{self.output_dir.resolve().name}-key.json"


@dataclass(frozen=True)
class CollectOptions:
    """What the readers sent."""

    answers: list[Path] = required("CSV files that readers saved.", positional=True)
    key_file: Path = required("The study's key.")
    output: Path = required("CSV file of all answers with their methods.")


@dataclass(frozen=True)
class PlotOptions:
    """Which answers."""

    answers: Path = required("What `collect` wrote.", positional=True)
    output_dir: Path = required("Folder for the page, the box plots and the figures as JSON.")


EditOptions = given_options()


def make(
    options: MakeOptions,
    model: ModelOptions,
    edit: Any,
    device_options: DeviceOptions,
    result_options: ResultOptions,
) -> None:
    """Write the questionnaire and its key.

    Raises:
        ValueError: for arguments or files that cannot be used.
        OSError: if a file cannot be read or written, or the Hub cannot be reached.
    """
    from ..reader_study.design import design_study
    from ..reader_study.pairs import read_folders, read_table
    from ..reports.pages.questionnaire import write_questionnaire

    key_file = options.key_place()
    with writable_folder(key_file.parent, "key_file"), claimed_folder(options.output_dir) as folder:
        if options.table is not None:
            pairs = read_table(options.table)
        elif options.images_dir is not None:
            pairs = read_folders(options.images_dir)
        else:
            pairs = _made_pairs(options, model, edit, device_options)
        study = design_study(pairs, options.num_cases, options.seed)
        key = study.key()
        key.save(key_file)
        page = write_results(lambda place: write_questionnaire(study, place / QUESTIONNAIRE_FILE), folder)
    for sentence in study.notes:
        note(sentence)
    counts = {"study": study.name, "num_pairs": len(study.items), "methods": list(key.methods)}
    if result_options.json:
        say_result({**counts, "questionnaire": str(page), "key_file": str(key_file)})
    else:
        print(f"{len(study.items)} pairs of {len(key.methods)} methods: {', '.join(key.methods)}")
        print(f"For the readers: {page}")
        print(f"Keep it from them: {key_file}")


def _made_pairs(
    options: MakeOptions, model: ModelOptions, edit: Any, device_options: DeviceOptions
) -> list[ImagePair]:
    """Pairs that the methods make now."""
    import numpy as np

    from ..pipelines import MediffusionCounterfactualPipeline
    from ..reader_study.design import choose_cases
    from ..reader_study.methods import candidate_cases, make_pairs

    device, dtype = device_options.choose()
    pipe = model.load(MediffusionCounterfactualPipeline, dtype, device)
    names, labels = _labelled_images(options, pipe)
    candidates = candidate_cases(names, labels, pipe.label_names)
    cases = choose_cases(candidates, options.num_cases, np.random.default_rng(options.seed))
    images = _read_images(options, pipe, sorted({case.name for case in cases}))
    usable = [case for case in cases if case.name in images]
    if len(usable) < len(cases):
        note(f"{len(cases) - len(usable)} cases are left out, because their images cannot be read.")
    return make_pairs(pipe, usable, images, options.methods, edit.given(), options.seed or 0)


def _labelled_images(options: MakeOptions, pipe: Any) -> tuple[list[str], np.ndarray]:
    """Names and labels of the images that may take part."""
    import numpy as np

    from .. import examples
    from ..evaluation.held_out import HeldOutSplit

    if options.dataset_dir is not None:
        split = HeldOutSplit(options.dataset_dir, options.split, pipe.label_names)
        return [str(row) for row in range(len(split.labels))], split.labels
    images = examples.images()
    labels = [[float(name in image.labels) for name in pipe.label_names] for image in images]
    return [image.name for image in images], np.array(labels)


def _read_images(options: MakeOptions, pipe: Any, names: list[str]) -> dict[str, Any]:
    """Images by name."""
    import numpy as np

    from .. import examples
    from ..evaluation.held_out import HeldOutSplit

    if options.dataset_dir is not None:
        split = HeldOutSplit(options.dataset_dir, options.split, pipe.label_names)
        rows, images = split.read(np.array(names, dtype=np.int64), pipe)
        return dict(zip(map(str, rows.tolist()), images, strict=True))
    return {image.name: image.image for image in examples.images() if image.name in names}


def collect(options: CollectOptions, result_options: ResultOptions) -> None:
    """Check the answers and say which method each is about.

    Raises:
        ValueError: for files that cannot be used.
    """
    from ..reader_study.answers import collect_answers, write_answers
    from ..reader_study.design import StudyKey

    with writable_folder(options.output.parent, "output"):
        collected = collect_answers(options.answers, StudyKey.load(options.key_file))
        write_answers(collected.answers, options.output)
    readers = sorted({answer.reader for answer in collected.answers})
    for sentence in collected.notes:
        note(sentence)
    if result_options.json:
        say_result({"num_answers": len(collected.answers), "readers": readers, "notes": collected.notes})
    else:
        print(f"{len(collected.answers)} answers of {len(readers)} readers: {options.output}")


def plot(options: PlotOptions, result_options: ResultOptions) -> None:
    """Write what the study found.

    Raises:
        ValueError: for a file that cannot be used.
    """
    from ..atomic_files import read_json
    from ..reader_study.answers import read_joined_answers
    from ..reports.pages.reader_study import RESULTS_FILE, write_reader_study

    answers = read_joined_answers(options.answers)
    with claimed_folder(options.output_dir) as folder:
        page = write_results(lambda place: write_reader_study(answers, place), folder)
    results = read_json(page.parent / RESULTS_FILE)
    if result_options.json:
        say_result(results)
        return
    for direction in ("remove", "add"):
        for method, grades in results.get(direction, {}).get("grades", {}).items():
            mean = "no answer" if grades["mean"] is None else f"mean grade {grades['mean']:.2f}"
            print(f"{direction}, {method}: {mean}, {grades['num_answers']} answers")
    print(f"Page: {page}")


HELP = first_paragraph(__doc__)
COMMANDS = {
    "make": Command(
        OptionParser(
            *(MakeOptions, ModelOptions, EditOptions, DeviceOptions, ResultOptions),
            description="Make the questionnaire, one page that works offline, and its key. Without a table or folder "
            f"of images, methods change those of a dataset or (`--model {EXAMPLE}`) of the example.",
        ),
        make,
    ),
    "collect": Command(
        OptionParser(
            CollectOptions, ResultOptions, description="Check the readers' files and join them with the key."
        ),
        collect,
    ),
    "plot": Command(
        OptionParser(
            PlotOptions, ResultOptions, description="Box plots, paired tests and agreement, as Fig. 6 of the paper."
        ),
        plot,
    ),
}
