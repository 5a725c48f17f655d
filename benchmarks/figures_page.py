#!/usr/bin/env python
"""Write `docs/figures.md` and the tables of the README and `docs/measured.md` from `benchmarks/results/*.json`.

    python benchmarks/figures_page.py

A results file is shown by its structure: mappings of like mappings become tables, numbers lists, `commands` a block.
`SECTIONS` says how a file is introduced and which of its parts are shown; a file that is not in it is shown whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from procedure_table import table_of
from readme_table import readme_table
from results_text import RESULTS, ROOT, at, cell, number, table, words

from mediffusion_diffusers.atomic_files import read_json, write_text


PAGE = ROOT / "docs" / "figures.md"
README, MEASURED = ROOT / "README.md", ROOT / "docs" / "measured.md"
BEGIN, END = "<!-- figures: written by `make figures-page` -->\n", "<!-- end of figures -->\n"

HEAD = """# What the figures say

Every figure below is read from a file of [benchmarks/results](../benchmarks/results), each with the commands that made
it; this page is written by `make figures-page`, and a test compares the two. [What was measured](measured.md) says
what the figures mean. All of it on CPUs; a figure "a ± b" is mean and standard deviation over models, "(a to b)" a
95 % interval.
"""

# Parts that are many rows of raw material, and what stands elsewhere on the page.
_LEFT_OUT = (
    "commands",
    "command",
    "what",
    "models",
    "kills",
    "rounds",
    "runs",
    "first_round",
    "per_label",
    "versions",
)


@dataclass(frozen=True)
class Section:
    """How one results file is shown.

    Args:
        title: heading.
        text: one sentence on what was measured.
        parts: which keys of the file are shown, in this order; nested ones with dots. All of them by default.
    """

    title: str
    text: str = ""
    parts: tuple[str, ...] | None = None


_REAL = ("data.num_rows", "data.subset", "labelled_split", "classification", "counterfactuals", "seen_in_the_panels")
SECTIONS = {
    "compare_procedures": Section(
        "Counterfactuals of one model by several procedures",
        "Phantoms, whose true counterfactuals are known, judged by an outside classifier trained on other patients.",
        ("mean", "differences"),
    ),
    "compare_procedures_consolidated": Section(
        "The same models after consolidation",
        "A thousand more steps on the models' own soft answers of all images; settings chosen anew by the same rule.",
        ("mean", "differences"),
    ),
    "counterfactual_speed": Section(
        "What a counterfactual costs",
        "Ratios have both sides from one run, CPU time of one thread.",
    ),
    "few_labels": Section(
        "Learning from few labels",
        "Differences are paired, in points of macro AUROC; what a method goes on from is counted in its CPU seconds.",
        (
            *("num_labelled_images", "num_test_images", "pre_training.cpu_seconds", "methods", "differences"),
            *("denoising_loss_over_the_pre_trained", "test_auroc_of_each_label", "learning_rates", "trials"),
        ),
    ),
    "real_data_pneumoniamnist": Section("Real images: PneumoniaMNIST", "A small model, minutes on one core.", _REAL),
    "real_data_isic2019": Section("Real images: a subset of ISIC 2019", "A small model, minutes on one core.", _REAL),
    "real_data_chestxray14": Section(
        "Real images: a subset of ChestX-ray14", "A small model, minutes on one core.", _REAL
    ),
    "shortcut": Section(
        "A shortcut found, and repairs that fall short",
        "One small model, one seed: the packaged checkpoint with a new head, 300 steps, then 80 to 200 of repair.",
    ),
    "semi_supervised": Section("Options for few labels"),
    "consolidation": Section("Consolidation: what the model's own soft answers change"),
    "autoencoder": Section("Autoencoders"),
    "paper_shape": Section("The paper's shape on a CPU"),
    "train_step": Section(
        "What joint training costs", "CPU time of a step in units of a step of plain diffusion training."
    ),
    "prepare_at_size": Section(
        "Preparing a dataset of the size of ChestX-ray14",
        "The official layout with drawn pictures; killed and started again, compared with a run that was left alone.",
    ),
    "explain_dataset": Section("Explaining whole datasets", "The same images by one process and by two."),
    "explain_slow_worker": Section(
        "Explaining with a slow worker", "One of two workers ten times slower; wall time over the ideal, by engine."
    ),
    "explain_at_size": Section(
        "Ten thousand chunks on a thousand workers", "Simulated, with the code that deals chunks to real ones."
    ),
    "kill_matrix": Section(
        "Killed trainings", "Runs killed at random moments and started again, compared with runs that were left alone."
    ),
    "explain_kill_matrix": Section("Killed explanations of datasets", "Likewise."),
    "explain_ray_losses": Section(
        "A Ray cluster that loses its parts",
        "Two raylets on loopback: a worker, a machine, then the driver are killed.",
    ),
}


def like_rows(entries: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The largest group of entries that make the rows of one table: mappings of cells, half of their keys shared."""
    rows = {key: row for key, row in ((key, cells_of(entry)) for key, entry in entries.items()) if row}
    groups = [
        {key: row for key, row in rows.items() if 2 * len(row.keys() & first.keys()) >= len(first)}
        for first in rows.values()
    ]
    return max(groups, key=len, default={})


def cells_of(entry: Any) -> dict[str, str]:
    """A mapping's values as text; nothing if they are more than fits in cells."""
    if not isinstance(entry, Mapping) or cell(entry) is not None:
        return {}
    cells = {key: cell(value) for key, value in entry.items() if key not in _LEFT_OUT}
    texts = {key: text for key, text in cells.items() if text is not None}
    return texts if len(texts) == len(cells) else {}


def shown(name: str, value: Any) -> Iterator[str]:
    """The blocks of one part of a file: its single values, then a table of what is alike, then what remains.

    Args:
        name: heading of the part; empty for the file itself.
        value: what the file holds there.
    """
    heading = f"**{name[:1].upper()}{name[1:]}**: " if name else ""
    if isinstance(value, list) and all(isinstance(entry, str | Mapping) for entry in value):
        value = {str(index): entry for index, entry in enumerate(value, start=1)}
    if cell(value) is not None:
        yield f"{heading}{cell(value)}\n"
    elif isinstance(value, Mapping):
        entries = {key: entry for key, entry in value.items() if key not in _LEFT_OUT}
        single = {key: str(cell(entry)) for key, entry in entries.items() if cell(entry) is not None}
        rows = like_rows(entries)
        rows = rows if len(rows) > 1 else {}
        if single or rows:
            line = heading + "; ".join(f"{words(key)} {text}" for key, text in single.items() if text)
            yield line.removesuffix(": ") + "\n"
        if rows:
            columns = list(dict.fromkeys(column for row in rows.values() for column in row))
            cells = [[words(key), *(row.get(each, "") for each in columns)] for key, row in rows.items()]
            yield table(["", *map(words, columns)], cells)
        for key in [key for key in entries if key not in single and key not in rows]:
            yield from shown(f"{name}, {words(key)}" if name else words(key), entries[key])


def options_for_few_labels(results: Mapping[str, Any]) -> Iterator[str]:
    """`semi_supervised.json`: one row per option, one column per seed."""
    for dataset, study in results.items():
        if not isinstance(study, Mapping):
            continue
        rows = study["rows"].values()
        seeds = sorted({run["seed"] for row in rows for run in row["runs"]})
        made = []
        for row in rows:
            runs = {run["seed"]: f"{number(run['macro_auroc'])} {cell(run['interval_95'])}" for run in row["runs"]}
            made.append(
                [
                    f"`{row['added']}`" if row["added"].startswith("-") else row["added"],
                    *(runs.get(seed, "") for seed in seeds),
                ]
            )
        yield (
            f"**{dataset}**, {study['num_labelled_images']} labelled images, {study['num_test_images']} test images, "
            f"{study['steps']} steps:\n"
        )
        yield table(["added", *(f"macro AUROC, seed {seed}" for seed in seeds)], made)
    yield "\n".join(f"- {note}" for note in results["notes"]) + "\n"


def section(path: Path) -> Iterator[str]:
    """The blocks of one results file."""
    results = read_json(path)
    about = SECTIONS.get(path.stem, Section(words(path.stem)))
    yield f"## {about.title}\n"
    text = " ".join(filter(None, (results.get("what"), about.text)))
    yield f"{text} [{path.name}](../benchmarks/results/{path.name})\n"
    if path.stem == "semi_supervised":
        yield from options_for_few_labels(results)
    else:
        parts = results if about.parts is None else {part.split(".")[-1]: at(results, part) for part in about.parts}
        yield from shown("", parts)
    picture = path.with_suffix(".png")
    if picture.is_file():
        yield f"![{about.title}: examples](../benchmarks/results/{picture.name})\n"
    commands = results.get("commands") or [command for command in [results.get("command")] if command]
    if commands:
        yield "Measured with\n"
        yield "```text\n" + "\n".join(commands) + "\n```\n"


def page(folder: Path = RESULTS) -> str:
    """The page of all results files: those of `SECTIONS` in its order, then the others."""
    order = list(SECTIONS)
    found = sorted(
        folder.glob("*.json"), key=lambda path: (order.index(path.stem) if path.stem in order else len(order), path)
    )
    return "\n".join([HEAD, *(block for path in found for block in section(path))])


def readme_with_table(text: str) -> str:
    """The README with its table written anew between the two marks; see `with_table`."""
    return with_table(text, readme_table(), "README.md")


def measured_with_table(text: str) -> str:
    """Likewise `docs/measured.md`, with the table of all procedures."""
    return with_table(text, table_of(read_json(RESULTS / "compare_procedures.json")["mean"]), "docs/measured.md")


def with_table(text: str, written: str, name: str) -> str:
    """A document with what is written anew between the two marks.

    Raises:
        ValueError: if it lacks them.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{name} must hold the lines {BEGIN.strip()!r} and {END.strip()!r}.")
    return f"{before}{BEGIN}\n{written}\n{END}{after}"


def main() -> None:
    """Write all three."""
    write_text(PAGE, page())
    for document, written in ((README, readme_with_table), (MEASURED, measured_with_table)):
        write_text(document, written(document.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
