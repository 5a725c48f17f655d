"""Make diffusers resolve this package's classes when it reads a `model_index.json`."""

from diffusers.pipelines import pipeline_loading_utils


LIBRARY_NAME = "mediffusion_diffusers"
LOADABLE_CLASSES = ("JointUNet2DModel", "MultistepDDIMScheduler", "SpaceToDepthAutoencoder")


def register_with_diffusers() -> None:
    """Add the models and the scheduler to diffusers' table of loadable classes; called when the package is imported.

    `model_index.json` then names `["mediffusion_diffusers", "JointUNet2DModel"]`, which loads from a folder and from
    the Hub alike and survives moving a module within the package.
    """
    methods = {name: ["save_pretrained", "from_pretrained"] for name in LOADABLE_CLASSES}
    pipeline_loading_utils.LOADABLE_CLASSES[LIBRARY_NAME] = methods
    pipeline_loading_utils.ALL_IMPORTABLE_CLASSES.update(methods)
