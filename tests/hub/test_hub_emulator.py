"""The emulator behaves towards the real `huggingface_hub` client as the Hub does."""

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download, whoami
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import get_session

from mediffusion_diffusers.hub import HUB_ERRORS


def upload(hub, folder):
    with hub.this_process(hub.token):
        api = HfApi()
        api.create_repo("org/model", exist_ok=True)
        return api.upload_folder(repo_id="org/model", folder_path=folder, commit_message="Add weights")


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "unet" / "weights.safetensors").write_bytes(bytes(range(256)) * 64)
    return folder


def test_upload_stores_regular_and_lfs_files_in_one_commit(hub, model_folder):
    url = upload(hub, model_folder)

    repository = hub.repository("org/model")
    assert repository.paths() == [".gitattributes", "config.json", "unet/weights.safetensors"]
    assert [commit.title for commit in repository.history()] == ["Add weights", "initial commit"]
    assert url == f"{hub.endpoint}/org/model/commit/{repository.branches['main']}"
    weights = (model_folder / "unet" / "weights.safetensors").read_bytes()
    assert hub.read("org/model", "unet/weights.safetensors") == weights
    commit = repository.resolve("main")
    assert commit.files["unet/weights.safetensors"].lfs_oid == hashlib.sha256(weights).hexdigest()
    assert commit.files["config.json"].lfs_oid is None


def test_uploading_the_same_again_makes_no_commit_and_sends_no_content(hub, model_folder):
    upload(hub, model_folder)
    num_requests = len(hub.requests)
    upload(hub, model_folder)

    assert len(hub.repository("org/model").history()) == 2
    assert not any(request.method == "PUT" for request in hub.requests[num_requests:])


def test_download_gives_back_every_byte_and_older_revisions_by_tag_and_branch(hub, model_folder):
    upload(hub, model_folder)
    with hub.this_process(hub.token):
        api = HfApi()
        api.create_tag("org/model", tag="v1")
        api.create_branch("org/model", branch="feature/a")
        api.upload_file(repo_id="org/model", path_or_fileobj=b"new", path_in_repo="config.json")
        for path in ("config.json", "unet/weights.safetensors"):
            for revision in ("v1", "feature/a"):
                local = Path(hf_hub_download("org/model", path, revision=revision))
                assert local.read_bytes() == (model_folder / path).read_bytes(), (path, revision)
        snapshot = Path(snapshot_download("org/model"))
        assert (snapshot / "config.json").read_bytes() == b"new"
        assert (snapshot / "unet" / "weights.safetensors").stat().st_size == 256 * 64
        tree = api.list_repo_tree("org/model", path_in_repo="unet")
        assert [entry.path for entry in tree] == ["unet/weights.safetensors"]
        refs = api.list_repo_refs("org/model")
        assert {ref.name for ref in refs.branches} == {"main", "feature/a"}
        assert [ref.name for ref in refs.tags] == ["v1"]
        api.delete_tag("org/model", tag="v1")
        assert api.list_repo_refs("org/model").tags == []
        with pytest.raises(RevisionNotFoundError):
            hf_hub_download("org/model", "config.json", revision="v1", force_download=True)


def test_a_private_repository_is_hidden_without_a_token_and_read_only_with_a_read_token(hub):
    def write(content):
        HfApi().upload_file(repo_id="org/secret", path_or_fileobj=content, path_in_repo="a.txt")

    with hub.this_process(hub.token):
        HfApi().create_repo("org/secret", private=True)
        write(b"x")
    with hub.this_process(hub.read_token):
        assert Path(hf_hub_download("org/secret", "a.txt")).read_bytes() == b"x"
        with pytest.raises(HfHubHTTPError, match="403"):
            write(b"y")
    with hub.this_process():
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("org/secret", "a.txt")
        with pytest.raises(RepositoryNotFoundError):
            write(b"y")
    assert hub.read("org/secret", "a.txt") == b"x"


def test_a_dataset_repository_is_apart_from_a_model_of_the_same_name(hub):
    with hub.this_process(hub.token):
        api = HfApi()
        api.create_repo("org/both", repo_type="model")
        api.create_repo("org/both", repo_type="dataset")
        place = {"repo_id": "org/both", "repo_type": "dataset"}
        api.upload_file(path_or_fileobj=b"rows", path_in_repo="data/a.parquet", **place)
        assert Path(hf_hub_download(filename="data/a.parquet", **place)).read_text() == "rows"
        assert api.dataset_info("org/both").sha != api.model_info("org/both").sha
    assert hub.repository("org/both", "model").paths() == [".gitattributes"]
    assert hub.read("org/both", "data/a.parquet", repo_type="dataset") == b"rows"


def test_a_pull_request_leaves_main_alone(hub):
    with hub.this_process(hub.token):
        api = HfApi()
        api.create_repo("org/model")
        info = api.upload_file(repo_id="org/model", path_or_fileobj=b"x", path_in_repo="a.txt", create_pr=True)
        assert info.pr_revision == "refs/pr/1"
        assert Path(hf_hub_download("org/model", "a.txt", revision="refs/pr/1")).read_text() == "x"
    assert hub.repository("org/model").paths("main") == [".gitattributes"]


def test_a_failed_upload_is_tried_again_and_counted(hub, model_folder, _short_waits):
    fault = hub.fail_next_uploads(1, status=503)
    upload(hub, model_folder)

    assert fault.remaining == 0
    assert [request.status for request in hub.requests if request.method == "PUT"] == [503, 200]
    assert "unet/weights.safetensors" in hub.repository("org/model").paths()


def test_a_failed_commit_leaves_the_repository_as_it_was(hub, model_folder, _short_waits):
    hub.fail_next(1, status=500, method="POST", path="/commit/")
    with pytest.raises(HfHubHTTPError):
        upload(hub, model_folder)

    assert len(hub.repository("org/model").history()) == 1


def test_a_dropped_connection_reaches_the_client_as_an_error(hub):
    hub.fail_next(1, status=None, path="/whoami-v2")
    with hub.this_process(hub.token):
        with pytest.raises(HUB_ERRORS):
            whoami()
        assert whoami()["name"] == "org"


def test_content_that_does_not_match_its_sha256_is_refused(hub):
    with hub.this_process():
        assert get_session().put(f"{hub.endpoint}/_lfs/{'0' * 64}", content=b"other").status_code == 422
