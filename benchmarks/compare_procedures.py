#!/usr/bin/env python
"""The field side by side: every procedure on the same networks, images and measures.

Procedures: ours (`quality="best"` and `"fast"`), the inversion, the paper's (random noise, DDPM, gradient through the
predicted clean latents), its App. H (a classifier of pixels guides, trained on as many labels), and `peers/`: DiME,
ACE, FastDiME, MaskDiME-like. Controls: the plain gradient in the region and at the L1 of ours, the same everywhere,
white noise at that L1, and the null edits.

Settings are chosen on the validation split, by the rule of `tune_procedure.py` and with no more trials for ours: the
variant on the first model, the scales on each; our removals stop where calibration lets them. The test images are
edited once. Every image is of another patient, in either direction. What a procedure made of a model's images is kept
in `--work_dir`, so that the same command goes on where it ended, and measures anew what is there:

    OMP_NUM_THREADS=1 python benchmarks/compare_procedures.py --dataset_dir demo/phantoms --oracle_path demo/oracle \\
        --external_path runs/external --models demo/mediffusion-phantom runs/seed1 runs/seed2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from edit_cost import peak_megabytes, rounded, unet_evaluations
from procedure_figures import DirectionFigures, Row, difference, mean_figures
from procedure_table import draw_examples, table_of
from procedures import PROCEDURES, Bench, Edited, Procedure
from tqdm.auto import tqdm
from tune_procedure import as_json, tune

from mediffusion_diffusers.atomic_files import new_file, read_json, write_json, write_text
from mediffusion_diffusers.data.schema import load_info
from mediffusion_diffusers.evaluation.classification import nan_to_none
from mediffusion_diffusers.evaluation.counterfactual_study import DIRECTIONS
from mediffusion_diffusers.evaluation.provenance import describe_provenance


COST_IMAGES, MEMORY_IMAGES = 2, 32
COSTS = ("unet_evaluations", "cpu_seconds", "megabytes_for_32_images")
OURS = ("ours, best", "ours, fast")
DRAWN = (
    *OURS,
    "plain gradient in its region, as ours, best",
    *(each.name for each in PROCEDURES if each.name not in OURS),
    "null edit of paper",
    "paper, less its null edit",
)


class Workshop:
    """What the procedures made of one model's images, on disk.

    Args:
        model: pipeline folder.
        args: of the command line.
    """

    def __init__(self, model: Path, args: argparse.Namespace):
        self.provenance = describe_provenance(model, load_info(args.dataset_dir), "test")
        self.folder = args.work_dir / self.provenance["checkpoint"][:12]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model, self.args = model, args
        self._benches: dict[str, Bench] = {}

    def bench(self, split: str) -> Bench:
        """The split's images, loaded once."""
        if split not in self._benches:
            args = self.args
            num = args.num_images_per_label if split == "test" else args.num_validation_images_per_label
            self._benches[split] = Bench(
                self.model, args.dataset_dir, split, args.oracle_path, args.external_path, num
            )
        return self._benches[split]

    def make(self, procedure: Procedure, first: Workshop) -> None:
        """Choose settings, edit the test images, and measure what that costs; unless it is there already.

        Args:
            procedure: how.
            first: that of the first model, on which the variant is chosen for all, and operations and memory measured.
        """
        for direction in DIRECTIONS:
            path = self._path(procedure.name, direction)
            record = self.record(procedure.name, direction)
            if record is None:
                model = first.record(procedure.name, direction)
                variants = procedure.variants if model is None else (without_scale(model["settings"]),)
                trials = tune(self.bench("validation"), procedure, direction, variants)
                settings = {**trials[0].settings, **self.bench("validation").stop(procedure, direction)}
                edited = self.bench("test").edit(procedure, direction, settings)
                save_edited(path, edited)
                record = {"settings": settings, "trials": as_json(trials), "cpu_seconds": edited.cpu_seconds}
                write_json(path.with_suffix(".json"), record)
            if self is first and not record.keys() >= set(COSTS):
                costs = cost(self.bench("test"), procedure, direction, record["settings"])
                write_json(path.with_suffix(".json"), {**record, **costs})

    def record(self, name: str, direction: str) -> dict[str, Any] | None:
        """Settings, trials and costs of a procedure; None if it has not been run."""
        path = self._path(name, direction).with_suffix(".json")
        return read_json(path) if path.is_file() else None

    def _path(self, name: str, direction: str) -> Path:
        return self.folder / f"{slug(name)}-{direction}.npz"

    def rows(self, procedures: list[Procedure], direction: str, figures: DirectionFigures) -> dict[str, Edited]:
        """By name: the procedures' edits, the controls of ours, the paper's null edit, and the truth."""
        names = [each.name for each in procedures if self.record(each.name, direction)]
        edits = {name: load_edited(self._path(name, direction)) for name in names}
        found = dict(edits)
        for ours in (name for name in OURS if name in edits):
            path = self._path(f"controls of {ours}", direction)
            if not path.is_file():
                save_arrays(path, {name: made.images for name, made in figures.controls(edits[ours]).items()})
            with np.load(path) as arrays:
                found |= {f"{name}, as {ours}": Edited(arrays[name], None, None, np.nan) for name in arrays.files}
        for name, edited in edits.items():
            null, originals = edited.null_images, figures.originals
            if null is not None and not np.allclose(null, originals, atol=1e-3):
                alone = (originals + edited.images - null).clip(0, 1)
                found[f"null edit of {name}"] = Edited(null, None, None, np.nan)
                found[f"{name}, less its null edit"] = Edited(alone, None, None, np.nan)
        return found


def measure(workshops: list[Workshop], procedures: list[Procedure]) -> dict[str, Any]:
    """Every figure of every procedure and control: by model, their means, and ours minus each of the others.

    Means are over the models on which a procedure was run, differences over those on which both were.
    """
    rows: dict[str, dict[str, dict[int, Row]]] = {direction: {} for direction in DIRECTIONS}
    models = []
    for number, workshop in enumerate(tqdm(workshops, desc="Measuring")):
        records: dict[str, Any] = {}
        results: dict[str, Any] = {}
        for direction in DIRECTIONS:
            figures = DirectionFigures(workshop.bench("test"), direction)
            results[direction] = {"num_images": len(figures.patients), "num_patients": len(set(figures.patients))}
            for name, edited in workshop.rows(procedures, direction, figures).items():
                row = figures.row(name, edited)
                record = workshop.record(name, direction)
                if record is not None:
                    records.setdefault(name, {})[direction] = record
                    row.figures.update({key: record[key] for key in COSTS if key in record})
                rows[direction].setdefault(name, {})[number] = row
                results[direction][name] = row.figures
        models.append({"provenance": workshop.provenance, "procedures": records, "results": results})
    differences = {
        f"{direction}: {ours} minus {name}": difference(found[ours], others)
        for direction, found in rows.items()
        for ours in OURS
        for name, others in found.items()
        if ours in found and name != ours and found[ours].keys() & others.keys()
    }
    mean = {
        direction: {name: mean_figures(list(found.values())) for name, found in table.items()}
        for direction, table in rows.items()
    }
    return {"models": models, "mean": mean, "differences": differences}


def draw(workshop: Workshop, procedures: list[Procedure], path: Path) -> None:
    """The first image of each finding, as every procedure changed it."""
    bench = workshop.bench("test")
    made: dict[str, dict[str, np.ndarray]] = {"truth": bench.truth, **{name: {} for name in DRAWN}}
    for direction in DIRECTIONS:
        figures = DirectionFigures(bench, direction)
        for name, edited in workshop.rows(procedures, direction, figures).items():
            if name in DRAWN:
                made.setdefault(name, {})[direction] = edited.images
    made = {name: images for name, images in made.items() if images}
    targets = {direction: chosen.targets for direction, chosen in bench.chosen.items()}
    draw_examples(path, bench.originals, made, targets, bench.label_names)


def cost(bench: Bench, procedure: Procedure, direction: str, settings: dict[str, Any]) -> dict[str, float]:
    """Operations and memory of an edit."""

    def edit(num_images: int) -> Edited:
        return bench.edit(procedure, direction, settings, slice(0, num_images))

    return {
        "unet_evaluations": unet_evaluations(bench.pipe.unet, lambda: edit(COST_IMAGES), COST_IMAGES),
        "megabytes_for_32_images": peak_megabytes(lambda: edit(MEMORY_IMAGES)),
    }


def without_scale(settings: dict[str, Any]) -> dict[str, Any]:
    """A variant, as `Procedure` names it: without what is chosen for each model."""
    return {name: value for name, value in settings.items() if name not in ("guidance_scale", "stop_probability")}


def slug(name: str) -> str:
    """A name as a file's."""
    return "-".join(name.lower().replace(",", " ").split())


def save_edited(path: Path, edited: Edited) -> None:
    """Write a procedure's images."""
    save_arrays(path, {name: value for name, value in vars(edited).items() if value is not None})


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays by name, whole or not at all."""
    with new_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_edited(path: Path) -> Edited:
    """Read them."""
    with np.load(path) as arrays:
        found = dict(arrays)
    seconds = float(found.pop("cpu_seconds"))
    return replace(Edited(found["images"], None, None, seconds), **found)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="Pipeline folders: one per seed.")
    parser.add_argument("--dataset_dir", type=Path, required=True, help="Phantoms, whose true changes are known.")
    parser.add_argument("--oracle_path", type=Path, required=True, help="The outside classifier that judges.")
    parser.add_argument("--external_path", type=Path, required=True, help="Another one, of as many labels; App. H.")
    parser.add_argument("--num_images_per_label", type=int, default=30)
    parser.add_argument("--num_validation_images_per_label", type=int, default=8)
    parser.add_argument("--procedures", nargs="+", default=[each.name for each in PROCEDURES], help="Only some.")
    parser.add_argument("--work_dir", type=Path, default=Path("runs") / "compare_procedures")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "compare_procedures.json")
    args = parser.parse_args(argv)
    unknown = set(args.procedures) - {each.name for each in PROCEDURES}
    if unknown:
        parser.error(f"--procedures: unknown {sorted(unknown)}; known: {', '.join(each.name for each in PROCEDURES)}.")
    return args


def main() -> None:
    """Edit, measure, write JSON, a table and a picture."""
    args = parse()
    chosen = [each for each in PROCEDURES if each.name in args.procedures]
    workshops = [Workshop(model, args) for model in args.models]
    pairs = [(workshop, procedure) for procedure in chosen for workshop in workshops]
    for workshop, procedure in tqdm(pairs, desc="Procedures, on each model"):
        workshop.make(procedure, workshops[0])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    report = {"command": " ".join(["python", *sys.argv]), **measure(workshops, chosen)}
    write_json(args.output, rounded(nan_to_none(report)))
    table = table_of(report["mean"])
    write_text(args.output.with_suffix(".md"), table)
    draw(workshops[0], chosen, args.output.with_suffix(".png"))
    print(table)


if __name__ == "__main__":
    main()
