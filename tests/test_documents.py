"""The documents keep their word: links lead somewhere, Python examples are Python."""

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FOLDERS = (".", "benchmarks", "docs", "docs/how-to", "model_cards", "pipelines", "space", "tests", "training")
DOCUMENTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))


def parametrize_documents(function):
    names = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
    return pytest.mark.parametrize("document", DOCUMENTS, ids=names)(function)


@parametrize_documents
def test_relative_links_lead_to_a_file(document):
    prose = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose)]
    missing = [target for target in targets if "://" not in target and not (document.parent / target).exists()]
    assert missing == []


@parametrize_documents
def test_python_examples_are_valid_python(document):
    for example in re.findall(r"```(?:python|py)\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.S):
        ast.parse(example, filename=document.name)
