"""A pipeline folder goes to the Hub with its own card, and comes back as any of the three pipelines."""

import numpy as np
import pytest

from mediffusion_diffusers import (
    MediffusionClassifyPipeline,
    MediffusionCounterfactualPipeline,
    MediffusionGuidedPipeline,
)
from mediffusion_diffusers.publishing.options import PublishOptions
from mediffusion_diffusers.publishing.upload import publish_pipeline_folder


@pytest.fixture
def publish(hub, capsys, caplog):
    """Publish a folder once per call, `(repo_id, options)`, as one client; give the URLs or errors."""

    def publish_all(folder, *calls, token=None):
        answers = []
        with hub.this_process(token):
            for repo_id, options in calls:
                try:
                    answers.append(publish_pipeline_folder(folder, repo_id, PublishOptions(**options)).url)
                except (PermissionError, ValueError) as error:
                    answers.append(f"{type(error).__name__}: {error}")
        said = "".join((*capsys.readouterr(), caplog.text, *answers))
        assert hub.token not in said and hub.read_token not in said
        return answers

    return publish_all


def test_a_published_pipeline_comes_back_as_any_of_the_three(hub, publish, pipeline, pipeline_folder, tmp_path):
    loaded = MediffusionCounterfactualPipeline.from_pretrained(pipeline_folder)
    loaded.save_pretrained(pipeline_folder)  # writes the folder's place into the configs
    assert str(tmp_path) in (pipeline_folder / "unet" / "config.json").read_text()

    (url,) = publish(pipeline_folder, ("org/mediffusion-phantom", {}), token=hub.token)

    repository = hub.repository("org/mediffusion-phantom")
    assert url == f"{hub.endpoint}/org/mediffusion-phantom/commit/{repository.branches['main']}"
    assert repository.paths() == [
        ".gitattributes",
        "README.md",
        "mediffusion_classify.py",
        "mediffusion_counterfactual.py",
        "mediffusion_guided.py",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/mediffusion_diffusers.py",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "vae/mediffusion_diffusers.py",
    ]
    for path in repository.paths():
        assert str(tmp_path).encode() not in hub.read("org/mediffusion-phantom", path), path
    assert hub.read("org/mediffusion-phantom", "README.md") == (pipeline_folder / "README.md").read_bytes()

    image = np.random.default_rng(0).random((1, 16, 16, 1), dtype=np.float32)
    repo_id = "org/mediffusion-phantom"
    with hub.this_process():
        kinds = (MediffusionCounterfactualPipeline, MediffusionClassifyPipeline, MediffusionGuidedPipeline)
        explain, classify, generate = (kind.from_pretrained(repo_id) for kind in kinds)
    explained = explain(image, away="Mass", output_type="np")
    assert explained.settings["strength"] == 0.2 and explained.settings["guidance_scale"] == 5.0
    expected = pipeline(image, away="Mass", output_type="np").images
    np.testing.assert_allclose(explained.images, expected, atol=1e-5)
    classified = classify(image)
    np.testing.assert_allclose(classified.probabilities, explained.probabilities_before, atol=1e-6)
    assert classified.label_names == ["Cardiomegaly", "Effusion", "Mass"]
    generated = generate("Effusion", num_inference_steps=2, output_type="np")
    assert generated.images.shape == (1, 16, 16, 1)


def test_branches_pull_requests_and_private_repositories(hub, publish, pipeline_folder):
    urls = publish(
        pipeline_folder,
        ("org/model", {"private": True}),
        ("org/model", {"private": True}),
        ("org/fork", {"revision": "try-out"}),
        ("org/fork", {"create_pr": True, "commit_message": "Propose weights"}),
        ("org/fork", {"private": True}),
        ("model", {}),
        token=hub.token,
    )

    assert hub.repository("org/model").private
    assert urls[0] == urls[1] == urls[5]
    fork = hub.repository("org/fork")
    assert fork.paths("main") == [".gitattributes"]
    assert "model_index.json" in fork.paths("try-out") and "model_index.json" in fork.paths("refs/pr/1")
    assert fork.resolve("refs/pr/1").title == "Propose weights"
    assert urls[4].startswith("ValueError: A private repository was asked for, but org/fork exists and is public.")


def test_without_permission_nothing_is_published_and_the_error_says_what_to_do(hub, publish, pipeline_folder):
    (nobody,) = publish(pipeline_folder, ("org/model", {}))
    (reader,) = publish(pipeline_folder, ("org/model", {}), token=hub.read_token)

    assert nobody.startswith("PermissionError: Publishing to org/model needs a login")
    assert reader.startswith("PermissionError: The token may not write to org/model.")
    assert hub.state.repositories == {}


def test_a_folder_without_card_or_pipeline_is_refused(pipeline_folder, tmp_path):
    with pytest.raises(ValueError, match="model_index"):
        publish_pipeline_folder(tmp_path, "org/model")
    (pipeline_folder / "README.md").unlink()
    with pytest.raises(ValueError, match=r"README\.md"):
        publish_pipeline_folder(pipeline_folder, "org/model")


def test_a_folder_that_holds_a_token_is_refused_without_repeating_it(pipeline_folder):
    token = "hf_" + 17 * "aZ"
    (pipeline_folder / "notes.txt").write_text(f"logged in with {token}")
    with pytest.raises(ValueError, match=r"notes\.txt.*holds an access token") as error:
        publish_pipeline_folder(pipeline_folder, "org/model")
    assert token not in str(error.value)

    (pipeline_folder / "notes.txt").write_text("my own words")
    with pytest.raises(ValueError, match="holds an access token"):
        publish_pipeline_folder(pipeline_folder, "org/model", token="my own words")
