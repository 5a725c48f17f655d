"""The cards of the small runs are what the results say, and no figure of a card or the README is by hand."""

import json
import re
from pathlib import Path

import cards
import pytest
from figures_page import BEGIN, END
from results_text import number

from mediffusion_diffusers.reports.tables import format_value


ROOT = Path(__file__).parents[2]
PHANTOM = ROOT / "model_cards" / "mediffusion-phantom"


@pytest.mark.parametrize("name", cards.SMALL_RUNS)
def test_a_card_is_what_the_results_say(name):
    assert (cards.CARDS / name / "README.md").read_text() == cards.card(name), "Run `make figures-page`."


@pytest.mark.parametrize("name", cards.SMALL_RUNS)
def test_another_result_is_another_card(name, tmp_path):
    """No figure of the classification is in the program: a results file of other figures gives a card of those."""
    file = f"{cards.SMALL_RUNS[name].results}.json"
    results = json.loads((cards.RESULTS / file).read_text())
    results["classification"]["macro_auroc"] = 0.123456
    (tmp_path / file).write_text(json.dumps(results))
    assert "AUROC 0.123 " in cards.card(name, tmp_path)


def numbers(text):
    """Fractions in the prose and tables of a document: code, links and what is generated elsewhere left out."""
    text = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)|https?://\S+", " ", text, flags=re.S)
    return {found.replace("−", "-") for found in re.findall(r"[−-]?\d+\.\d+(?![\w.])", text)}


def figures(value):
    """Every number of a results file, as cards write it."""
    if isinstance(value, dict):
        return set().union(*map(figures, value.values()), set())
    if isinstance(value, list):
        return set().union(*map(figures, value), set())
    if isinstance(value, str):
        return set(re.findall(r"-?\d+\.\d+", value))
    if isinstance(value, bool) or value is None:
        return set()
    return {format_value(float(value)).replace("−", "-"), number(value), f"{value:g}"}


def test_every_figure_of_the_phantoms_results_stands_in_its_files():
    """Of its tables and introductions; captions explain, and name the figures of chance."""
    card = (PHANTOM / "README.md").read_text()
    results = card.partition("\n## Results\n")[2].partition("\n## Defaults")[0]
    told = "\n".join(line for line in results.splitlines() if line.startswith("|") or "Macro AUROC" in line)
    files = [json.loads(path.read_text()) for path in PHANTOM.rglob("*.json")]
    known = set().union(*map(figures, files))
    studied = [file[name]["oracle"] for file in files for name in ("remove", "add") if name in file]
    known |= set().union(*(figures(oracle["null"] - oracle["before"]) for oracle in studied))
    assert len(numbers(told)) > 100 and numbers(told) - known == set()


def test_no_figure_of_the_readme_is_by_hand():
    """What is not in the table between the marks, which is generated, is the version of Python or of a licence."""
    before, _, rest = (ROOT / "README.md").read_text().partition(BEGIN)
    assert numbers(before + rest.partition(END)[2]) <= {"3.10"}
