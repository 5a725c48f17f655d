"""Some images explained, as one page to send to a colleague, panels and animations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..guidance import scale_for
from ..pipelines import MediffusionCounterfactualPipeline
from ..pipelines.outputs import MediffusionCounterfactualPipelineOutput
from .explanation_table import write_explanation_table
from .pages.explanations import write_explanation_html
from .pictures.animations import save_gif, sweep_frames, transition_frames
from .pictures.drawing import save_picture
from .pictures.explained_image import ExplainedImage
from .pictures.explained_output import Boxes, explain_sweep
from .pictures.explanations import explanation_panel


PAGE_FILE = "explanations.html"
SWEEP = (0.0, 0.25, 0.5, 1.0)  # of the guidance scale; the first is the null edit
_SWEEP_MILLISECONDS = 700


def explain_images(
    pipe: MediffusionCounterfactualPipeline,
    images: Sequence[Any],
    label: str,
    action: str,
    boxes: Sequence[Boxes] | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
    **settings: Any,
) -> tuple[list[ExplainedImage], dict[str, Any]]:
    """Explain images one by one, each with a sweep over guidance scale from the same inversion.

    Args:
        pipe: the pipeline.
        images: what the pipeline takes.
        label: the finding to remove or add.
        action: `"removed"` or `"added"`.
        boxes: of the finding in each image, in relative units.
        names: what to call the images, by default "Image 1" and so on; printed, so they must not identify a person.
        seed: of the noises of each image's calls, which are the same in all of them.
        settings: of the pipeline's call; with `target_probability` the sweep ends at the scale that was found.

    Returns:
        The explained images, and the settings used.

    Raises:
        ValueError: for an unknown action or label, or images that cannot be used.
    """
    if action not in ("removed", "added"):
        raise ValueError(f"`action` must be 'removed' or 'added', but got {action!r}.")
    target = {"away" if action == "removed" else "towards": label}
    explained, used = [], {}
    for index, image in enumerate(tqdm(images, desc="Explaining", unit="image")):
        arguments = dict(settings)
        if arguments.get("target_probability") is not None:
            generator = torch.Generator().manual_seed(seed)
            found = pipe(image, **target, **arguments, generator=generator, output_type="np", controls=False)
            arguments = same_edit(arguments, found)
            scale = arguments["guidance_scale"]
        else:
            asked = {name: arguments.get(name) for name in ("guidance_scale", "stop_probability")}
            resolved = pipe.resolve_settings(**asked)
            scale = scale_for(resolved.guidance_scale, list(target))  # type: ignore[arg-type]
            arguments["stop_probability"] = resolved.stop_probability
        arguments["guidance_scale"] = [share * scale for share in SWEEP]
        generator = torch.Generator().manual_seed(seed)
        output = pipe(image, **target, **arguments, generator=generator, output_type="np")
        of_image = () if boxes is None else boxes[index]
        name = f"Image {index + 1}" if names is None else names[index]
        explained.append(explain_sweep(output, label, action, name, of_image))
        used = {**output.settings, "guidance_scale": scale if len(images) == 1 else "per image, see the sweeps"}
    return explained, used


def same_edit(
    arguments: Mapping[str, Any], output: MediffusionCounterfactualPipelineOutput, row: int = 0
) -> dict[str, Any]:
    """Arguments of a call that makes a counterfactual again without searching, so that it can be varied.

    Args:
        arguments: of the call that made it.
        output: what that call returned, with pictures of any type.
        row: which counterfactual.

    Returns:
        The arguments with the scale, the strength and the region that were found, and without the bounds of a search.
    """
    bounds = ("target_probability", "max_guidance_scale", "max_strength")
    again = {name: value for name, value in arguments.items() if name not in bounds}
    assert output.guidance_scales is not None and output.strengths is not None
    again["guidance_scale"], again["strength"] = float(output.guidance_scales[row]), float(output.strengths[row])
    # A checkpoint's own would give way to the scale.
    again["stop_probability"] = output.settings.get("stop_probability")
    # A region found anew, by another scale, would make another edit; noised paths find theirs in the edit itself.
    if output.region is not None and output.settings.get("start") != "noised_paths":
        again["mask"] = output.region[[row if len(output.region) > 1 else 0]]
    return again


def write_explanations(
    explained: Sequence[ExplainedImage], output_dir: str | Path, provenance: dict[str, Any] | None = None
) -> Path:
    """Write the page, a table, and for each image a panel and two animations.

    Args:
        explained: of `explain_images`.
        output_dir: gets `explanations.html`, `explanations.csv`, `explanations.json`, and `panel-1.png`,
            `transition-1.gif`, `sweep-1.gif` and so on.
        provenance: what the page says about where it comes from.

    Returns:
        Path of the page.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(tqdm(explained, desc="Drawing", unit="image"), start=1):
        save_picture(explanation_panel(one), folder / f"panel-{number}.png")
        save_gif(transition_frames(one), folder / f"transition-{number}.gif")
        save_gif(sweep_frames(one), folder / f"sweep-{number}.gif", frame_milliseconds=_SWEEP_MILLISECONDS)
    write_explanation_table(explained, folder, provenance)
    return write_explanation_html(explained, folder / PAGE_FILE, provenance=provenance)
