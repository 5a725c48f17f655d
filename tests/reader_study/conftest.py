import numpy as np
import pytest
from support.components import random_pil

from mediffusion_diffusers.reader_study.design import design_study
from mediffusion_diffusers.reader_study.pairs import Case, ImagePair


METHODS = ("own_edit", "plain_gradient", "null_edit")


def make_pairs(num_images=4, labels=("Mass", "Effusion"), methods=METHODS):
    """Pairs of every image, label, direction and method; no two modified images are the same."""
    originals = random_pil(num_images)
    modified = iter(random_pil(num_images * len(labels) * 2 * len(methods), seed=1))
    return [
        ImagePair(Case(f"SENTINEL-{number}", label, direction), method, original, next(modified))
        for number, original in enumerate(originals)
        for label in labels
        for direction in ("remove", "add")
        for method in methods
    ]


@pytest.fixture(scope="session")
def pairs():
    return make_pairs()


@pytest.fixture(scope="session")
def study(pairs):
    return design_study(pairs, num_cases=3, seed=5)


@pytest.fixture
def answer_file(tmp_path):
    """Writes a reader's file: a grade for each of some items."""

    def write(reader, grades, study_name, name=None):
        rows = [f"{study_name},{reader},{place},{item},{grade},1.5" for place, (item, grade) in enumerate(grades, 1)]
        path = tmp_path / f"{name or reader}.csv"
        path.write_text("\n".join(["study,reader,place,item,grade,seconds", *rows]) + "\n")
        return path

    return write


@pytest.fixture
def generator():
    return np.random.default_rng(3)
