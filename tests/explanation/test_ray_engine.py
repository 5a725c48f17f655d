"""The actors of a Ray cluster make what one process makes; skipped without Ray (its extra is `ray`)."""

import pytest
from support.explanation import job, output_bytes

from mediffusion_diffusers.commands.explain_dataset import sentence
from mediffusion_diffusers.device_options import DeviceOptions
from mediffusion_diffusers.explanation.dataset_runner import explain_dataset
from mediffusion_diffusers.explanation.ray_engine import explain_dataset_with_ray
from mediffusion_diffusers.pipelines.source import PipelineSource


ON_CPU = DeviceOptions(device="cpu")


def test_without_ray_it_is_said_what_to_install(pipeline_folder, phantoms, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ValueError, match=r"`engine` 'ray' needs Ray, .*pip install 'mediffusion-diffusers\[ray\]'"):
        explain_dataset_with_ray(PipelineSource(str(pipeline_folder)), job(phantoms, tmp_path))


def test_actors_make_what_one_process_makes(pipe, pipeline_folder, phantoms, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    source = PipelineSource(str(pipeline_folder), device_options=ON_CPU)
    explain_dataset(pipe, job(phantoms, tmp_path / "here"))
    monkeypatch.chdir(tmp_path)  # paths are the caller's, in whatever folder the actors run
    summary = explain_dataset_with_ray(source, job(phantoms, "there"), num_workers=2)
    assert summary.counts["num_explained"] == 36 and summary.num_workers == 2 and summary.manifest["complete"]
    assert output_bytes(tmp_path / "there") == output_bytes(tmp_path / "here")
    again = explain_dataset_with_ray(source, job(phantoms, "there"), num_workers=1)
    assert "Nothing was left to do: 5 of 5" in sentence(again)
    with pytest.raises(ValueError, match=r"`num_inference_steps` .* must lie in \[1, 1\]"):
        wrong = job(phantoms, "wrong", strength=0.001, num_inference_steps=50)
        explain_dataset_with_ray(source, wrong, num_workers=1)
