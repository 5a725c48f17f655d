import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate.state import AcceleratorState, GradientState
from support.components import tiny_pipeline
from support.explanation import bad_pictures, prepare_sharded_phantoms, with_broken_exif

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.data.phantom import PHANTOM_LABELS


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """accelerate keeps its state between runs of one process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    """Keep what `datasets` caches out of the home folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets-cache")


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """A saved pipeline of tiny components that knows the phantoms' labels."""
    folder = tmp_path_factory.mktemp("pipeline")
    defaults = {"strength": 0.2, "guidance_scale": 5.0, "num_inference_steps": 2}
    names = dict(enumerate(PHANTOM_LABELS))
    tiny_pipeline(MediffusionCounterfactualPipeline, id2label=names, guidance_defaults=defaults).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def pipe(pipeline_folder):
    return MediffusionCounterfactualPipeline.from_pretrained(pipeline_folder)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    return prepare_sharded_phantoms(tmp_path_factory.mktemp("phantoms") / "data")


@pytest.fixture
def broken_rows(phantoms, tmp_path):
    """One shard of the phantoms' first eight rows: 1 to 5 cannot be explained, the EXIF of 6 is broken."""
    table = pq.read_table(sorted((phantoms / "data").glob("train-*"))[0])
    rows = table.to_pylist()
    assert len(rows) == 8
    for row, (picture, _) in zip(rows[1:], bad_pictures(), strict=False):
        row["image"] = picture
    rows[6]["image"]["bytes"] = with_broken_exif(rows[6]["image"]["bytes"])
    folder = tmp_path / "broken"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / "rows.parquet")
    return folder


@pytest.fixture
def calls(monkeypatch):
    """How many images each call of the pipeline got."""
    sizes = []
    call = MediffusionCounterfactualPipeline.__call__

    def counted(self, image, *arguments, **kwargs):
        sizes.append(len(image))
        return call(self, image, *arguments, **kwargs)

    monkeypatch.setattr(MediffusionCounterfactualPipeline, "__call__", counted)
    return sizes
