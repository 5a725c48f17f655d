import datasets
import pytest
from accelerate.state import AcceleratorState, GradientState

from mediffusion_diffusers.data.phantom import prepare_phantoms
from mediffusion_diffusers.data.schema import load_info, load_prepared
from mediffusion_diffusers.data.splits import draw_labelled_split


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """accelerate keeps its state between runs of one process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory):
    """Keep what `datasets` caches out of the home folder."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.getbasetemp() / "datasets-cache"
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """A prepared dataset of 24 training and 12 validation phantoms of 16x16 pixels, half of them labelled."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    prepare_phantoms(folder, 24, 12, 0, image_size=16, show_progress=False)
    draw_labelled_split(load_prepared(folder, "train"), load_info(folder), 50, seed=2).save(
        folder / "labelled-50.json"
    )
    return folder
