"""The checkpoint inside the package."""

from __future__ import annotations

from pathlib import Path


def checkpoint() -> Path:
    """The folder of a trained pipeline for chest phantoms of five findings, with its model card.

    All three pipelines load it. Its weights are stored in half precision and load as float32; `make
    phantom-checkpoint` trains it again.

    Raises:
        FileNotFoundError: if the installation has left the folder out.
    """
    folder = Path(__file__).parent / "phantom"
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            "This installation of mediffusion_diffusers lacks its example checkpoint. Install the package again, or "
            "train it with `make phantom-checkpoint` in a clone."
        )
    return folder
