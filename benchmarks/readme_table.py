"""The README's table of results: its rows, and how each figure is read from its file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from results_text import RESULTS, cell, number, table, words

from mediffusion_diffusers.atomic_files import read_json


_DIRECTIONS = ("remove", "add")
_ERRORS = {"remove": "error", "add": "nearest_error"}  # there are many true ways of adding a finding
_OTHER_PAPERS = ("DiME", "ACE", "FastDiME", "MaskDiME-like")


def _means(results: Any, name: str, figures: Mapping[str, str]) -> str:
    """A figure of a procedure in `compare_procedures.json`, removing / adding."""
    return " / ".join(f"{results['mean'][way][name][figure]['mean']:.2f}" for way, figure in figures.items())


def _side_by_side(figures: Mapping[str, str], results: Any) -> str:
    """Ours, the best of the other papers' procedures in each direction, and the paper's."""
    rivals = [
        min(results["mean"][way][name][figure]["mean"] for name in _OTHER_PAPERS) for way, figure in figures.items()
    ]
    best, fast, paper = (_means(results, name, figures) for name in ("ours, best", "ours, fast", "paper"))
    rival = " / ".join(f"{each:.2f}" for each in rivals)
    return f"best {best}, fast {fast}; the least of four other papers' {rival}; the paper's {paper}"


def _against_the_gradient(results: Any) -> str:
    pairs = {
        way: results["differences"][f"{way}: ours, best minus plain gradient in its region, as ours, best"]
        for way in _DIRECTIONS
    }

    def put(figures: Mapping[str, str]) -> str:
        found = [pairs[way][figure] for way, figure in figures.items()]
        return " / ".join(f"{each['estimate']:+.2f} {cell(each['interval_95'])}" for each in found)

    return f"error {put(_ERRORS)}; cosine to the true change {put(dict.fromkeys(_DIRECTIONS, 'cosine'))}"


def _consolidated(results: Any) -> str:
    return ", ".join(f"{quality} {_means(results, f'ours, {quality}', _ERRORS)}" for quality in ("best", "fast"))


def _cost(results: Any) -> str:
    ratios = results["fast and best, paper"]["ratios_per_target"]
    fast, best = (ratios[f"authors / {quality}, 1 target"] for quality in ("fast", "best"))
    inversion = results["whole counterfactual, paper"]["ratios_per_target"]["authors / ours"]
    return f"fast {fast:.0f} times less, best {best:.0f} (one round on a busy machine); the inversion {inversion:.0f}"


def _auroc(results: Any) -> str:
    found, split = results["classification"], results["labelled_split"]
    interval = cell(found["interval_95_over_patients"])
    return f"macro AUROC {number(found['macro_auroc'])} {interval} with {number(split['share'])} % of the labels"


def _few_labels(results: Any) -> str:
    """Ours, minus the same encoder and the strongest of the other networks."""
    ours = "ours: diffusion, labels, consolidation"
    pairs = {key.split(", minus ")[1]: row for key, row in results["differences"].items() if key.startswith(ours)}
    others = {name: row for name, row in results["methods"].items() if not row["pre_trained_to_denoise"]}
    encoder = "same encoder, labels alone"
    rival = max(others, key=lambda name: others[name]["test_macro_auroc"]["mean"])
    texts = [
        f"{pairs[name]['points']['mean']:+.1f} {cell(pairs[name]['interval_95_over_draws'])} against {words(name)}"
        for name in (encoder, rival)
    ]
    return f"macro AUROC {results['methods'][ours]['test_macro_auroc']['mean']:.3f}; points: " + ", ".join(texts)


def _kills(results: Any) -> str:
    kills = sum(result["num_kills"] for result in results["results"])
    return f"{kills} kills, {'every result bit for bit the same' if results['bit_identical'] else 'results differ'}"


# What the README's table says, in its order: the line, the file, and how its figure is put.
README_ROWS: Sequence[tuple[str, str, Callable[[Any], str]]] = (
    (
        "Counterfactuals of phantoms: distance to the truth, 1 for not editing; removing / adding (nearest way)",
        "compare_procedures",
        partial(_side_by_side, _ERRORS),
    ),
    ("The same after consolidation", "compare_procedures_consolidated", _consolidated),
    (
        "A detector of edits, AUROC, 0.5 if it cannot tell",
        "compare_procedures",
        partial(_side_by_side, dict.fromkeys(_DIRECTIONS, "realism_auroc")),
    ),
    (
        "Best, minus a plain gradient of the same size in the same region",
        "compare_procedures",
        _against_the_gradient,
    ),
    ("CPU time of one at the paper's shape, against the authors' procedure", "counterfactual_speed", _cost),
    ("ISIC 2019, a subset, few labels: ours, and what it gains, over draws", "few_labels", _few_labels),
    ("PneumoniaMNIST, small model", "real_data_pneumoniamnist", _auroc),
    ("ISIC 2019, a subset, small model", "real_data_isic2019", _auroc),
    ("ChestX-ray14, a subset, small model", "real_data_chestxray14", _auroc),
    ("Trainings killed at random moments", "kill_matrix", _kills),
    ("Explanations of datasets, likewise", "explain_kill_matrix", _kills),
)


def readme_table(folder: Path = RESULTS) -> str:
    """The README's table. A row whose figures a file no longer holds is left out, and said so."""
    rows = []
    for line, name, put in README_ROWS:
        try:
            figure = put(read_json(folder / f"{name}.json"))
        except KeyError as missing:
            print(f"README row left out: {name}.json has no {missing}: {line}", file=sys.stderr)
            continue
        rows.append([line, figure, f"[{name}](benchmarks/results/{name}.json)"])
    return table(["what", "measured", "file"], rows)
