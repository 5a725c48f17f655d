"""Whole datasets classified, without any edit."""

import numpy as np
import pytest
import torch
from support.explanation import output_table

from mediffusion_diffusers import MediffusionClassifyPipeline, MediffusionModel
from mediffusion_diffusers.data.input_rows import RowReader, read_picture
from mediffusion_diffusers.data.input_shards import find_dataset, inspect_shards
from mediffusion_diffusers.explanation.dataset_runner import explain_dataset
from mediffusion_diffusers.explanation.plan import ExplanationJob
from mediffusion_diffusers.requests.classification import ClassificationRequest
from mediffusion_diffusers.requests.request import row_generator


def job(dataset, output_dir, batch_size=4, **request):
    places = {"split": "validation", "chunk_rows": batch_size, "show_progress": False}
    return ExplanationJob(str(dataset), output_dir, ClassificationRequest(**request), batch_size=batch_size, **places)


@pytest.fixture
def pictures(pipe, phantoms):
    """The validation phantoms as the model sees them, and the name of their shard."""
    (shard,) = inspect_shards(find_dataset(phantoms, "validation").shards)
    rows = RowReader().rows(shard, 0, shard.num_rows)
    return torch.stack([read_picture(row, 1, *pipe.image_size) for row in rows]), shard.name


def test_scores_and_embeddings_are_those_of_the_pipeline_and_of_the_model(pipe, phantoms, pictures, tmp_path):
    summary = explain_dataset(pipe, job(phantoms, tmp_path))
    assert summary.manifest["complete"] and summary.counts["num_explained"] == 6
    table = output_table(tmp_path)
    expected = MediffusionClassifyPipeline(vae=pipe.vae, unet=pipe.unet, scheduler=pipe.scheduler)(pictures[0])
    np.testing.assert_allclose(table["probabilities"].to_pylist(), expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(table["logits"].to_pylist(), expected.logits, atol=1e-4)
    model = MediffusionModel(pipe.vae, pipe.unet).eval()
    with torch.no_grad():
        features = model(model.preprocess(pictures[0])).pooler_output
    np.testing.assert_allclose(table["embedding"].to_pylist(), features, atol=1e-5)
    assert table["row"].to_pylist() == list(range(6)) and set(table["error"].to_pylist()) == {None}
    assert table["label_names"][0].as_py() == pipe.label_names


def test_an_average_over_timesteps_belongs_to_the_rows(pipe, phantoms, pictures, tmp_path):
    average = {"timesteps": (0, 300), "num_noise_samples": 2, "seed": 3, "embeddings": False}
    for batch_size in (6, 2):
        explain_dataset(pipe, job(phantoms, tmp_path / str(batch_size), batch_size, **average))
    found = [np.array(output_table(tmp_path / str(size))["logits"].to_pylist()) for size in (6, 2)]
    np.testing.assert_allclose(*found, atol=1e-4)
    noise = [row_generator(3, pictures[1], row) for row in range(6)]
    classifier = MediffusionClassifyPipeline(vae=pipe.vae, unet=pipe.unet, scheduler=pipe.scheduler)
    expected = classifier(pictures[0], timesteps=(0, 300), num_noise_samples=2, generator=noise)
    np.testing.assert_allclose(found[0], expected.logits, atol=1e-4)
    assert output_table(tmp_path / "2")["embedding"].to_pylist() == [None] * 6


def test_bad_rows_and_other_questions(pipe, broken_rows, phantoms, tmp_path):
    first, other = (
        ExplanationJob(str(broken_rows), tmp_path / "out", ClassificationRequest(seed=seed)) for seed in (0, 1)
    )
    assert explain_dataset(pipe, first).counts["num_failed"] == 5
    with pytest.raises(ValueError, match=r"another run: `seed` is 0 there and 1 now"):
        explain_dataset(pipe, other)
    with pytest.raises(ValueError, match=r"`timesteps` must be a whole number in \[0, 999\], but got 1000"):
        explain_dataset(pipe, job(phantoms, tmp_path, timesteps=(1000,)))


def test_a_model_that_returns_nan_fails_the_rows(pipe, phantoms, tmp_path):
    with torch.no_grad():
        pipe.unet.conv_in.bias.fill_(torch.nan)
    assert explain_dataset(pipe, job(phantoms, tmp_path)).manifest["failures"] == {
        "The model returned NaN or infinite values.": 6
    }
