import datasets
import pytest
from support.explanation import prepare_sharded_phantoms


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    """Keep what `datasets` caches out of the home folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets-cache")


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    return prepare_sharded_phantoms(tmp_path_factory.mktemp("phantoms") / "data")
