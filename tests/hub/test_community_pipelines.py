"""The files in pipelines/ turn one checkpoint into each of the three pipelines."""

from pathlib import Path

import mediffusion_diffusers


ROOT = Path(__file__).parents[2]
CLASSES = {
    "mediffusion_classify": "MediffusionClassifyPipeline",
    "mediffusion_guided": "MediffusionGuidedPipeline",
    "mediffusion_counterfactual": "MediffusionCounterfactualPipeline",
}


def test_there_is_one_file_for_each_pipeline_class():
    assert {path.stem for path in (ROOT / "pipelines").glob("*.py")} == set(CLASSES)
    assert all(hasattr(mediffusion_diffusers, name) for name in CLASSES.values())


def test_the_files_work_as_custom_pipeline_of_a_folder_and_of_the_hub(hub, pipeline_folder):
    upload = (
        "import sys; from huggingface_hub import HfApi; api = HfApi(); api.create_repo('org/model');"
        "api.upload_folder(repo_id='org/model', folder_path=sys.argv[1], ignore_patterns=['checkpoint-*', '.*'])"
    )
    hub.run_python(upload, pipeline_folder, token=hub.token)
    script = """
import sys
import mediffusion_diffusers
from diffusers import DiffusionPipeline

for source in ("org/model", sys.argv[1]):
    for name in sys.argv[2:]:
        pipe = DiffusionPipeline.from_pretrained(
            source, custom_pipeline=f"pipelines/{name}.py", trust_remote_code=True
        )
        print(type(pipe).__name__, type(pipe.unet).__name__)
"""
    lines = hub.run_python(script, pipeline_folder, *CLASSES, cwd=ROOT).stdout.splitlines()
    assert lines == 2 * [f"{name} JointUNet2DModel" for name in CLASSES.values()]
