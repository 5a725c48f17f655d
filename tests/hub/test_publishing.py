"""A pipeline folder goes to the Hub with its own card, and comes back as any of the three pipelines."""

import json
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from mediffusion_diffusers import (
    MediffusionClassifyPipeline,
    MediffusionCounterfactualPipeline,
    MediffusionGuidedPipeline,
)
from mediffusion_diffusers.commands.publish import main as publish_command
from mediffusion_diffusers.digests import sha256_of
from mediffusion_diffusers.hub import HubFailure
from mediffusion_diffusers.publishing.options import PublishOptions
from mediffusion_diffusers.publishing.upload import publish_pipeline_folder, publish_space


NUM_FILES = 12
SPACE = Path(__file__).parents[2] / "space"


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
    for name in ("notes.txt", "NOTES", "run.ipynb", "settings.toml", "unet/notes.bin"):  # a suffix says little
        (pipeline_folder / name).write_text(f"logged in with {token}")
        with pytest.raises(ValueError, match=rf"{name} in `folder` holds an access token"):
            publish_pipeline_folder(pipeline_folder, "org/model", PublishOptions(dry_run=True))
        (pipeline_folder / name).unlink()
    (pipeline_folder / "notes.txt").write_text(f"logged in with {token}")
    with pytest.raises(ValueError, match=r"notes\.txt.*holds an access token") as error:
        publish_pipeline_folder(pipeline_folder, "org/model")
    assert token not in str(error.value)

    (pipeline_folder / "notes.txt").write_text("my own words")
    with pytest.raises(ValueError, match="holds an access token"):
        publish_pipeline_folder(pipeline_folder, "org/model", token="my own words")


@pytest.mark.usefixtures("_short_waits")
class TestRepeating:
    """What the network and the Hub do to an upload."""

    @pytest.fixture
    def publish_once(self, hub, pipeline_folder):
        def publish(token=None, **options):
            num_before = len(hub.requests)
            with hub.this_process(token or hub.token):
                published = publish_pipeline_folder(pipeline_folder, "org/model", PublishOptions(**options))
            return published, hub.requests[num_before:]

        return publish

    def test_the_same_again_sends_nothing(self, hub, publish_once, pipeline_folder):
        first, _ = publish_once()
        again, requests = publish_once()
        assert len(first.sent) == len(first.files) == NUM_FILES and again.sent == [] and again.url == first.url
        assert not [request for request in requests if "commit" in request.path or request.method == "PUT"]
        assert not [request for request in requests if "preupload" in request.path or "lfs" in request.path]
        assert len(hub.repository("org/model").history()) == 2

        (pipeline_folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Another card\n")
        assert publish_once(create_pr=True)[0].url.endswith("/discussions/1")
        assert [file.path for file in publish_once()[0].sent] == ["README.md"]
        assert len(hub.repository("org/model").history()) == 3

    def test_a_dry_run_lists_what_a_publish_sends_and_asks_nobody(self, publish_once, pipeline_folder):
        dry, requests = publish_once(dry_run=True)
        assert requests == [] and dry.url is None
        published, _ = publish_once()
        assert dry.files == published.files == published.sent
        lines = str(dry).splitlines()
        weights = pipeline_folder / "unet" / "diffusion_pytorch_model.safetensors"
        assert lines[0].startswith(f"{NUM_FILES} files with ")
        (line,) = [line for line in lines if "unet/diffusion" in line]
        assert line.split()[:2] == [sha256_of(weights), f"{weights.stat().st_size:,}"]

    def test_nothing_is_sent_before_the_hub_says_that_it_is_private(self, hub, publish_once):
        _, requests = publish_once(private=True)
        paths = [(request.method, request.path) for request in requests]
        confirmed = paths.index(("GET", "/api/models/org/model"))
        assert paths[:confirmed] == [("POST", "/api/repos/create")]
        assert hub.repository("org/model").private

    @pytest.mark.parametrize(
        "fault",
        [
            {"status": 500, "method": "POST", "path": "/commit/"},
            {"status": None, "method": "POST", "path": "/commit/"},
            {"status": 422, "method": "PUT", "path": "^/_lfs/"},  # content that is not of its hash
            {"status": 500, "method": "POST", "path": "/api/repos/create"},
            {"status": None, "method": "POST", "path": "/preupload/"},
        ],
        ids=str,
    )
    def test_a_fault_that_passes_is_survived(self, hub, publish_once, fault):
        asked = hub.fail_next(1, **fault)
        published, _ = publish_once()
        assert asked.remaining == 0 and len(published.sent) == NUM_FILES
        assert len(hub.repository("org/model").history()) == 2

    @pytest.mark.parametrize(
        ("fault", "line"),
        [
            ({"status": 500, "path": "/commit/"}, "org/model was not published. The Hub has a fault of its own (500)"),
            ({"status": None, "path": "/api/"}, "org/model was not published. The Hub at "),
            ({"status": 422, "path": "^/_lfs/"}, "org/model was not published. A file arrived damaged"),
        ],
    )
    def test_a_fault_that_stays_is_said_in_one_line(self, hub, publish_once, fault, line):
        hub.fail_next(1000, **fault)
        with pytest.raises(HubFailure) as error:
            publish_once()
        assert str(error.value).startswith(line) and "\n" not in str(error.value) and hub.token not in str(error.value)

    def test_a_token_that_is_not_accepted_is_not_tried_again(self, hub, publish_once):
        asked = hub.fail_next(1000, status=401, method="POST")
        with pytest.raises(PermissionError, match=r"^Publishing to org/model needs a login"):
            publish_once(token="hf_" + 17 * "xY")
        assert asked.remaining == 999


def test_a_space_is_an_app_with_its_sdk_in_the_readme(hub, tmp_path):
    (tmp_path / "app.py").write_text("print('an app')\n")
    with pytest.raises(ValueError, match=r"`folder` must hold README\.md"):
        publish_space(tmp_path, "org/app")
    (tmp_path / "README.md").write_text("---\ntitle: An app\n---\n")
    with pytest.raises(ValueError, match="must name its `sdk`"):
        publish_space(tmp_path, "org/app")
    (tmp_path / "README.md").write_text("---\nsdk: [\n---\n")
    with pytest.raises(ValueError, match=r"The front matter of .*README\.md cannot be read: "):
        publish_space(tmp_path, "org/app")
    (tmp_path / "README.md").write_text("---\ntitle: An app\nsdk: gradio\n---\n")
    with hub.this_process(hub.token):
        published = publish_space(tmp_path, "org/app", PublishOptions(private=True))
        again = publish_space(tmp_path, "org/app", PublishOptions(private=True))
    space = hub.repository("org/app", "space")
    assert space.private and space.paths() == [".gitattributes", "README.md", "app.py"]
    assert published.url == again.url == f"{hub.endpoint}/spaces/org/app/commit/{space.branches['main']}"
    assert again.sent == []


def test_a_space_may_install_the_package_from_elsewhere():
    wheel = "https://example.org/mediffusion_diffusers-0.1.0-py3-none-any.whl"
    for address in (wheel, "git+https://example.org/mediffusion-diffusers@v0.1.0"):
        files = publish_space(SPACE, "org/app", PublishOptions(dry_run=True), package=address).files
        (line,) = next(file.source for file in files if file.path == "requirements.txt").decode().splitlines()
        requirement = Requirement(line)
        assert (requirement.name, requirement.extras) == ("mediffusion-diffusers", {"app", "dicom"})
        assert requirement.url == address
    for address in ("mediffusion-diffusers", "../here.whl", "https://example.org/x.whl\nother", ""):
        with pytest.raises(ValueError, match="`package` must be the address"):
            publish_space(SPACE, "org/app", PublishOptions(dry_run=True), package=address)
    with pytest.raises(ValueError, match="`package` is for a Space"):
        publish_command([str(SPACE), "org/app", "--package", wheel])


@pytest.mark.parametrize(
    "repo_id", ["", " ", "a b", "a/b/c", "../x", "org/", "org/x.git", "https://huggingface.co/org/x"]
)
def test_what_is_no_name_of_a_repository_is_refused_in_a_dry_run_too(repo_id):
    with pytest.raises(ValueError, match="`repo_id` must be organisation/name, but got"):
        publish_space(SPACE, repo_id, PublishOptions(dry_run=True))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("model_index.json", "null", "model_index.json"),
        ("model_index.json", "[]", "model_index.json"),
        ("model_index.json", '{"unet": ["a"]}', "names no pipeline"),
        ("model_index.json", '{"_class_name": "DDPMPipeline", "unet": ["a"]}', "`unet` must be"),
        ("unet/config.json", "", "config.json"),
        ("unet/config.json", "[]", "config.json"),
    ],
)
def test_a_damaged_pipeline_is_not_published(pipeline_folder, name, text, message):
    (pipeline_folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        publish_pipeline_folder(pipeline_folder, "org/model", PublishOptions(dry_run=True))


def test_a_part_that_is_missing_or_elsewhere_is_not_left_out_silently(pipeline_folder, tmp_path):
    (pipeline_folder / "vae").rename(tmp_path / "vae")
    with pytest.raises(ValueError, match="must hold a whole pipeline, but 'run' lacks vae"):
        publish_pipeline_folder(pipeline_folder, "org/model", PublishOptions(dry_run=True))
    (pipeline_folder / "vae").symlink_to(tmp_path / "vae")
    with pytest.raises(ValueError, match="vae is a link to another folder"):
        publish_pipeline_folder(pipeline_folder, "org/model", PublishOptions(dry_run=True))


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="`create_pr`"):
        PublishOptions(create_pr=True, revision="branch")
    with pytest.raises(ValueError, match="`commit_message`"):
        PublishOptions(commit_message=" ")


def test_the_command_publishes_and_says_where(hub, pipeline_folder, capsys):
    with hub.this_process(hub.token):
        publish_command([str(pipeline_folder), "org/model", "--dry_run"])
        assert "model_index.json" in capsys.readouterr().out and hub.state.repositories == {}
        publish_command([str(pipeline_folder), "org/model", "--json"])
        said = json.loads(capsys.readouterr().out)
        publish_command([str(pipeline_folder), "org/model"])
    assert said["url"] in capsys.readouterr().out and len(said["sent"]) == NUM_FILES
