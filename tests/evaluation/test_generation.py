"""Generated images against real ones: distances by their definitions, fair draws, and copies that are found."""

import json

import numpy as np
import pytest
from scipy.linalg import sqrtm
from support.studies import prepare_world

from mediffusion_diffusers.commands import evaluate_generation
from mediffusion_diffusers.evaluation.distributions import fid, kid, kid_interval
from mediffusion_diffusers.evaluation.generation import Memorisation, distances, draw_real_sets
from mediffusion_diffusers.evaluation.generation_study import study_generation
from mediffusion_diffusers.publishing.evaluations import kept_evaluations


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_kid_is_its_double_sum_and_fid_its_closed_form(rng):
    """As `torchmetrics.image` computes them: the polynomial kernel pair by pair, and the root of a matrix."""
    one, other = rng.normal(size=(14, 5)), rng.normal(1, 2, size=(11, 5))

    def mean(first, second, skip):
        values = [
            (a @ b / 5 + 1) ** 3 for i, a in enumerate(first) for j, b in enumerate(second) if not (skip and i == j)
        ]
        return np.mean(values)

    by_pairs = mean(one, one, True) + mean(other, other, True) - 2 * mean(one, other, False)
    assert kid(one, other) == pytest.approx(by_pairs, abs=1e-9)
    root = sqrtm(np.cov(one.T) @ np.cov(other.T)).real
    spread = np.trace(np.cov(one.T) + np.cov(other.T) - 2 * root)
    assert fid(one, other) == pytest.approx(((one.mean(0) - other.mean(0)) ** 2).sum() + spread, abs=1e-6)


def test_the_interval_of_kid_is_the_jackknifes(rng):
    one, other = rng.normal(size=(9, 4)), rng.normal(0.5, 1, size=(7, 4))
    variance = 0.0
    for leave in (
        lambda k: kid(np.delete(one, k, 0), other) if k < 9 else None,
        lambda k: kid(one, np.delete(other, k, 0)) if k < 7 else None,
    ):
        values = np.array([value for k in range(9) if (value := leave(k)) is not None])
        variance += (len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum()
    low, high = kid_interval(one, other)
    assert (low + high) / 2 == pytest.approx(kid(one, other))
    assert high - low == pytest.approx(2 * 1.959964 * np.sqrt(variance), rel=1e-6)


def test_the_interval_covers_the_truth(rng):
    """Two normal distributions a shift apart: the true KID is that of very many images."""
    shift = np.array([1.0, 0, 0, 0])
    truth = kid(rng.normal(size=(900, 4)), rng.normal(size=(900, 4)) + shift)
    covered = 0
    for _ in range(60):
        low, high = kid_interval(rng.normal(size=(40, 4)), rng.normal(size=(40, 4)) + shift)
        covered += low <= truth <= high
    assert covered >= 51


def test_real_sets_share_no_patient_and_no_image_stands_twice(rng):
    labels = (rng.random((300, 3)) < (0.5, 0.3, 0.04)).astype(float)
    labels[::7] = np.nan
    patients = rng.integers(0, 90, size=300)
    sets = draw_real_sets(labels, patients, 20, seed=1)
    rows = np.concatenate([*sets.references, *sets.others])
    assert len(set(rows.tolist())) == len(rows)
    assert not set(patients[np.concatenate(sets.references)]) & set(patients[np.concatenate(sets.others)])
    assert [len(each) for each in sets.others] == sets.num_per_label
    assert sets.num_per_label[:2] == [20, 20] and 0 < sets.num_per_label[2] < 7
    assert all((labels[each, k] == 1).all() for k, each in enumerate(sets.references))
    again = draw_real_sets(labels, patients, 20, seed=1)
    assert all(map(np.array_equal, sets.references, again.references))


def test_too_few_images_have_no_distance():
    found = distances(np.ones((2, 3)), np.ones((9, 3)))
    assert np.isnan(found["kid"]) and np.isnan(found["kid_interval_95"]).all()


def test_copies_are_found_and_others_are_not_accused(rng):
    training, held_out, new = rng.normal(size=(3, 400, 3))
    copies = Memorisation.of(training[:30] + 1e-6, training, held_out)
    summary = copies.summarize()
    assert summary["share_nearer_to_training"] == 1 and summary["distance_ratio"] < 1e-3
    assert copies.nearest_training.tolist() == list(range(30))
    summary = Memorisation.of(new, training, held_out).summarize()
    low, high = summary["share_nearer_to_training_interval_95"]
    assert low < 0.5 < high and summary["distance_ratio"] == pytest.approx(1, abs=0.1)
    mixed = np.concatenate([new[:20], training[5:7]])
    assert set(Memorisation.of(mixed, training, held_out).most_suspicious(2)) == {20, 21}
    same = Memorisation.of(new, training, training).summarize()
    assert same["share_nearer_to_training"] == 0.5
    with pytest.raises(ValueError, match="equally many images"):
        Memorisation.of(new, training, held_out[:-1])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return prepare_world(tmp_path_factory.mktemp("world"), num_train=12)


def study(world, **changes):
    arguments = {"num_images_per_label": 3, "num_inference_steps": 2, "batch_size": 8, **changes}
    return study_generation(world / "pipeline", world / "data", world / "oracle", **arguments)


def test_the_same_seed_gives_the_same_study_to_the_byte(world):
    """Guidance of scale 0 is none, whatever the label; noise belongs to the image and not to its batch."""
    first, again, other = (study(world, guidance_scale=0.0, batch_size=size) for size in (8, 8, 5))
    assert json.dumps(first.results) == json.dumps(again.results)
    np.testing.assert_array_equal(first.guided, first.unguided)
    np.testing.assert_allclose(first.guided, other.guided, atol=1e-5)
    assert first.results["guided"] == first.results["unguided"]
    assert sum(first.results["num_images_per_label"].values()) == len(first.guided)
    assert any("asked for" in note for note in study(world, num_images_per_label=9).results["notes"])


def test_the_command_fills_the_card(world, tmp_path, capsys):
    line = [f"--pretrained_model_name_or_path={world / 'pipeline'}", f"--dataset_dir={world / 'data'}"]
    line += [f"--oracle_path={world / 'oracle'}", f"--output_dir={tmp_path / 'out'}", "--device=cpu"]
    evaluate_generation.main([*line, "--num_images_per_label=3", "--num_inference_steps=2"])
    said = capsys.readouterr().out
    assert "other real images: the floor: KID" in said
    assert {path.suffix for path in (tmp_path / "out").iterdir() if path.name[0] != "."} == {".json", ".png"}
    assert [each.kind for each in kept_evaluations(world / "pipeline")] == ["generation"]
    with pytest.raises(ValueError, match="num_images_per_label"):
        study(world, num_images_per_label=2)
