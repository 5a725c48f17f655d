import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.components import tiny_vae
from support.training import TINY_JOINT, joint_config

from mediffusion_diffusers import staging
from mediffusion_diffusers.data.schema import load_prepared, parquet_files
from mediffusion_diffusers.data.transforms import ImageTransform
from mediffusion_diffusers.latents import encode_pixels
from mediffusion_diffusers.metrics_log import read_metrics
from mediffusion_diffusers.training.data import latent_cache
from mediffusion_diffusers.training.data.image_rows import ImageRows
from mediffusion_diffusers.training.data.latent_cache import CachePlan, open_latent_cache, stream_latents
from mediffusion_diffusers.training.data.streams import IndexStream
from mediffusion_diffusers.training.joint.task import train_joint


PLAIN = ImageTransform(16, 1)
SHIFTED = ImageTransform(16, 1, shift=2)


@pytest.fixture(scope="module")
def rows(phantoms):
    return ImageRows(load_prepared(phantoms, "train"))


@pytest.fixture
def small_shards(monkeypatch):
    """Five rows of one variant per shard."""
    monkeypatch.setattr(latent_cache, "SHARD_BYTES", 5 * 4 * 4 * 8 * 8)


def open_cache(tmp_path, phantoms, rows, vae=None, transform=PLAIN, num_variants=3, indices=None):
    plan = CachePlan(rows, np.arange(24) if indices is None else indices, transform, num_variants)
    return open_latent_cache(tmp_path / "latents", vae or tiny_vae("kl"), plan, parquet_files(phantoms, "train"))


def folder_of(tmp_path, cache):
    return tmp_path / "latents" / cache.key[:20]


def test_the_latents_are_those_of_the_autoencoder(phantoms, rows, tmp_path, small_shards):
    vae = tiny_vae("kl")
    cache = open_cache(tmp_path, phantoms, rows, vae, indices=np.array([1, 4, 5, 6, 9, 20, 23]))
    assert cache.num_variants == 1 and len(list(folder_of(tmp_path, cache).glob("*.safetensors"))) == 2
    with torch.no_grad():
        expected = encode_pixels(vae, rows.batch([20, 1, 9], PLAIN))
    torch.testing.assert_close(cache.batch([20, 1, 9]), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cache.std(), cache.batch([1, 4, 5, 6, 9, 20, 23]).std(correction=0).item())
    for row in (0, 22, 24):
        with pytest.raises(KeyError):
            cache.latents(row)


def test_variants_differ_and_are_the_same_every_time(phantoms, rows, tmp_path):
    cache = open_cache(tmp_path, phantoms, rows, transform=SHIFTED)
    again = open_cache(tmp_path / "again", phantoms, rows, transform=SHIFTED)
    assert cache.num_variants == 3 and cache.key == again.key
    variants = torch.stack([cache.latents(7, variant) for variant in range(3)])
    assert torch.equal(variants, torch.stack([again.latents(7, variant) for variant in range(3)]))
    assert len(variants.flatten(1).unique(dim=0)) > 1


def test_a_cache_is_used_again_and_keyed_by_all_it_depends_on(phantoms, rows, tmp_path, small_shards):
    cache = open_cache(tmp_path, phantoms, rows)
    times = {path: path.stat().st_mtime_ns for path in folder_of(tmp_path, cache).iterdir()}
    assert open_cache(tmp_path, phantoms, rows).key == cache.key
    assert {path: path.stat().st_mtime_ns for path in folder_of(tmp_path, cache).iterdir()} == times

    other_vae = tiny_vae("kl")
    with torch.no_grad():
        other_vae.encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
    rescaled = tiny_vae("kl")
    rescaled.register_to_config(scaling_factor=2.0)
    keys = {
        cache.key,
        open_cache(tmp_path, phantoms, rows, other_vae).key,
        open_cache(tmp_path, phantoms, rows, rescaled).key,
        open_cache(tmp_path, phantoms, rows, transform=SHIFTED).key,
        open_cache(tmp_path, phantoms, rows, transform=SHIFTED, num_variants=2).key,
        open_cache(tmp_path, phantoms, rows, indices=np.arange(23)).key,
    }
    assert len(keys) == 6


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "manifest", "interrupted"])
def test_damage_is_named_and_mended(phantoms, rows, tmp_path, small_shards, damage, caplog):
    cache = open_cache(tmp_path, phantoms, rows)
    folder = folder_of(tmp_path, cache)
    expected = cache.batch(np.arange(24))
    manifest = json.loads((folder / "manifest.json").read_text())
    shard = folder / "latents-00002-of-00005.safetensors"
    untouched = (folder / "latents-00001-of-00005.safetensors").stat().st_mtime_ns
    content = shard.read_bytes()
    if damage == "truncated":
        shard.write_bytes(content[:-8])
    elif damage == "changed":
        shard.write_bytes(content[:-8] + b"12345678")
    elif damage == "missing":
        shard.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{")
    else:  # killed while it encoded the third shard
        (folder / "manifest.json").unlink()
        with staging.locked_file(folder / ".staging", "file") as (file, _):
            file.write(content[:100])
    mended = open_cache(tmp_path, phantoms, rows)
    assert torch.equal(mended.batch(np.arange(24)), expected)
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    assert (folder / "latents-00001-of-00005.safetensors").stat().st_mtime_ns == untouched
    assert not list(folder.glob(".*"))


SLOW_RUN = """
import sys
import time
from pathlib import Path

data, scratch, *folders = sys.argv[1:]
scratch, sys.path[:0] = Path(scratch), folders
import numpy as np
from support.components import tiny_vae
from mediffusion_diffusers.data.schema import load_prepared, parquet_files
from mediffusion_diffusers.data.transforms import ImageTransform
from mediffusion_diffusers.training.data import latent_cache
from mediffusion_diffusers.training.data.image_rows import ImageRows

save = latent_cache.save

def save_slowly(tensors):
    (scratch / "writing").touch()
    while not (scratch / "go on").exists():
        time.sleep(0.01)
    return save(tensors)

latent_cache.save = save_slowly
rows = ImageRows(load_prepared(data, "train"))
plan = latent_cache.CachePlan(rows, np.arange(24), ImageTransform(16, 1))
cache = latent_cache.open_latent_cache(scratch / "latents", tiny_vae("kl"), plan, parquet_files(data, "train"))
print(cache.batch([23]).sum().item(), flush=True)
"""


def test_two_runs_at_once_do_each_other_no_harm(phantoms, rows, tmp_path, fork_server):
    """One comes and goes while the other is in the middle of writing its shard."""
    tests = Path(__file__).parents[1]
    log = tmp_path / "log"
    other = fork_server.start([sys.executable, "-c", SLOW_RUN, phantoms, tmp_path, tests, tests.parent], log)
    while not (tmp_path / "writing").exists():
        assert other.poll() is None, log.read_text()
        time.sleep(0.01)
    cache = open_cache(tmp_path, phantoms, rows, num_variants=1)
    (tmp_path / "go on").touch()
    assert other.wait() == 0, log.read_text()
    assert float(log.read_text().split()[-1]) == cache.batch([23]).sum().item()
    folder = folder_of(tmp_path, cache)
    assert {path.name for path in folder.iterdir()} == {"latents-00000-of-00001.safetensors", "manifest.json"}
    assert open_cache(tmp_path, phantoms, rows, num_variants=1).key == cache.key


def test_the_slices_of_a_stream_are_its_batch(phantoms, rows, tmp_path):
    cache = open_cache(tmp_path, phantoms, rows, transform=SHIFTED)
    stream = IndexStream(np.arange(24), 5, 0, "diffusion")
    whole = stream_latents(cache, stream, first_step=2)
    parts = [stream_latents(cache, stream, 2, rank, 2, 3) for rank in range(2)]
    for _ in range(2):
        slices = [[next(part) for _ in range(3)] for part in parts]
        joined = torch.cat([slices[rank][part] for part in range(3) for rank in range(2)])
        assert torch.equal(joined, next(whole))
    variants = {int(latent.flatten()[0] * 1e6) for _ in range(40) for latent in next(whole)}
    assert len(variants) > 24  # more than one variant of some rows


class Untouchable(torch.nn.Module):
    """An autoencoder that must not be asked."""

    def forward(self, *args):
        raise AssertionError("The autoencoder was used.")


def test_training_from_the_cache_never_touches_the_encoder(phantoms, tmp_path):
    tiny_vae("kl").save_pretrained(tmp_path / "vae")
    line = list(TINY_JOINT)
    place = line.index("--vae")
    line[place : place + 2] = ["--vae_path", tmp_path / "vae"]
    line += ["--dataset_dir", phantoms, "--random_shift", 0, "--classifier_dropout", 0, "--labelled_batch_size", 1]
    train_joint(joint_config(*line, "--output_dir", tmp_path / "runs" / "plain"))
    cached = (*line, "--cache_latents", "--gradient_accumulation_steps", 2)
    train_joint(joint_config(*cached, "--output_dir", tmp_path / "runs" / "cached"))
    weights, others = (
        load_file(tmp_path / "runs" / name / "checkpoint-6" / "unet.safetensors") for name in ("plain", "cached")
    )
    assert all(torch.allclose(tensor, others[name], atol=1e-4) for name, tensor in weights.items())
    record = read_metrics(tmp_path / "runs" / "cached" / "metrics.jsonl")[-1]
    assert record["kind"] == "validation" and record["macro_auroc"] is not None

    # The same weights under the same key, but nobody may encode: the second run reads what the first one wrote.
    from diffusers import AutoencoderKL

    load = AutoencoderKL.from_pretrained

    def load_untouchable(*args, **kwargs):
        vae = load(*args, **kwargs)
        vae.encode = Untouchable()
        return vae

    shutil.rmtree(tmp_path / "runs" / "cached")
    AutoencoderKL.from_pretrained = load_untouchable
    try:
        train_joint(joint_config(*cached, "--output_dir", tmp_path / "runs" / "cached"))
    finally:
        AutoencoderKL.from_pretrained = load
    again = load_file(tmp_path / "runs" / "cached" / "checkpoint-6" / "unet.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in others.items())
