"""The emulator behaves towards the real `huggingface_hub` client as the Hub does."""

import hashlib

import pytest


UPLOAD = """
import sys
from pathlib import Path
from huggingface_hub import HfApi

api = HfApi()
folder = Path(sys.argv[1])
api.create_repo("org/model", exist_ok=True)
print(api.upload_folder(repo_id="org/model", folder_path=folder, commit_message="Add weights"))
"""


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "unet" / "weights.safetensors").write_bytes(bytes(range(256)) * 64)
    return folder


def test_upload_stores_regular_and_lfs_files_in_one_commit(hub, model_folder):
    url = hub.run_python(UPLOAD, model_folder, token=hub.token).stdout.strip()

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
    hub.run_python(UPLOAD, model_folder, token=hub.token)
    num_requests = len(hub.requests)
    hub.run_python(UPLOAD, model_folder, token=hub.token)

    assert len(hub.repository("org/model").history()) == 2
    assert not any(request.method == "PUT" for request in hub.requests[num_requests:])


def test_download_gives_back_every_byte_and_older_revisions_by_tag_and_branch(hub, model_folder):
    hub.run_python(UPLOAD, model_folder, token=hub.token)
    script = """
import sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

api, folder = HfApi(), Path(sys.argv[1])
api.create_tag("org/model", tag="v1")
api.create_branch("org/model", branch="feature/a")
api.upload_file(repo_id="org/model", path_or_fileobj=b"new", path_in_repo="config.json")
for path in ("config.json", "unet/weights.safetensors"):
    for revision in ("v1", "feature/a"):
        local = hf_hub_download("org/model", path, revision=revision)
        assert Path(local).read_bytes() == (folder / path).read_bytes(), (path, revision)
snapshot = Path(snapshot_download("org/model"))
assert (snapshot / "config.json").read_bytes() == b"new"
assert (snapshot / "unet" / "weights.safetensors").stat().st_size == 256 * 64
assert [entry.path for entry in api.list_repo_tree("org/model", path_in_repo="unet")] == ["unet/weights.safetensors"]
refs = api.list_repo_refs("org/model")
assert {ref.name for ref in refs.branches} == {"main", "feature/a"} and [ref.name for ref in refs.tags] == ["v1"]
api.delete_tag("org/model", tag="v1")
assert api.list_repo_refs("org/model").tags == []
try:
    hf_hub_download("org/model", "config.json", revision="v1", force_download=True)
except Exception as error:
    print(type(error).__name__)
"""
    assert hub.run_python(script, model_folder, token=hub.token).stdout.strip() == "RevisionNotFoundError"


def test_a_private_repository_is_hidden_without_a_token_and_read_only_with_a_read_token(hub):
    hub.run_python(
        "from huggingface_hub import HfApi; api = HfApi(); api.create_repo('org/secret', private=True);"
        "api.upload_file(repo_id='org/secret', path_or_fileobj=b'x', path_in_repo='a.txt')",
        token=hub.token,
    )
    download = "from huggingface_hub import hf_hub_download; print(hf_hub_download('org/secret', 'a.txt'))"
    assert hub.run_python(download, token=hub.read_token).stdout.strip().endswith("a.txt")
    anonymous = hub.run_python(download, check=False)
    assert "RepositoryNotFoundError" in anonymous.stderr and anonymous.stdout == ""

    upload = (
        "from huggingface_hub import HfApi;"
        "HfApi().upload_file(repo_id='org/secret', path_or_fileobj=b'y', path_in_repo='a.txt')"
    )
    assert "403" in hub.run_python(upload, token=hub.read_token, check=False).stderr
    assert "RepositoryNotFoundError" in hub.run_python(upload, check=False).stderr
    assert hub.read("org/secret", "a.txt") == b"x"


def test_a_dataset_repository_is_apart_from_a_model_of_the_same_name(hub):
    script = """
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download

api = HfApi()
api.create_repo("org/both", repo_type="model")
api.create_repo("org/both", repo_type="dataset")
api.upload_file(repo_id="org/both", repo_type="dataset", path_or_fileobj=b"rows", path_in_repo="data/a.parquet")
print(Path(hf_hub_download("org/both", "data/a.parquet", repo_type="dataset")).read_text())
assert api.dataset_info("org/both").sha != api.model_info("org/both").sha
"""
    assert hub.run_python(script, token=hub.token).stdout.strip() == "rows"
    assert hub.repository("org/both", "model").paths() == [".gitattributes"]
    assert hub.read("org/both", "data/a.parquet", repo_type="dataset") == b"rows"


def test_a_pull_request_leaves_main_alone(hub):
    script = """
from huggingface_hub import HfApi, hf_hub_download

api = HfApi()
api.create_repo("org/model")
info = api.upload_file(repo_id="org/model", path_or_fileobj=b"x", path_in_repo="a.txt", create_pr=True)
print(info.pr_revision, open(hf_hub_download("org/model", "a.txt", revision=info.pr_revision)).read())
"""
    assert hub.run_python(script, token=hub.token).stdout.split() == ["refs/pr/1", "x"]
    assert hub.repository("org/model").paths("main") == [".gitattributes"]


def test_a_failed_upload_is_tried_again_and_counted(hub, model_folder):
    fault = hub.fail_next_uploads(1, status=503)
    hub.run_python(UPLOAD, model_folder, token=hub.token)

    assert fault.remaining == 0
    assert [request.status for request in hub.requests if request.method == "PUT"] == [503, 200]
    assert "unet/weights.safetensors" in hub.repository("org/model").paths()


def test_a_failed_commit_leaves_the_repository_as_it_was(hub, model_folder):
    hub.fail_next(1, status=500, method="POST", path="/commit/")
    completed = hub.run_python(UPLOAD, model_folder, token=hub.token, check=False)

    assert completed.returncode != 0
    assert len(hub.repository("org/model").history()) == 1


def test_a_dropped_connection_reaches_the_client_as_an_error(hub):
    hub.fail_next(1, status=None, path="/whoami-v2")
    script = "from huggingface_hub import whoami; print(whoami()['name'])"

    assert hub.run_python(script, token=hub.token, check=False).returncode != 0
    assert hub.run_python(script, token=hub.token).stdout.strip() == "org"


def test_content_that_does_not_match_its_sha256_is_refused(hub):
    script = """
import sys
from huggingface_hub.utils import get_session

print(get_session().put(sys.argv[1] + "/_lfs/" + "0" * 64, content=b"other").status_code)
"""
    assert hub.run_python(script, hub.endpoint).stdout.strip() == "422"
