"""Where an edit may happen: a user's mask or box, or where the model's own edit changed most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


_FULL_LEVELS = (255, 65535)  # of grey pictures of 8 and 16 bits
_GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def prepare_region(region: Any, num_rows: int, image_size: tuple[int, int], latent_size: tuple[int, int]) -> Any:
    """Bring a region to the latents' grid; a latent position is inside if any of its pixels is.

    Args:
        region: a PIL image, array or tensor of shape `(height, width)`, `(1, height, width)` or
            `(rows, [1,] height, width)`: 0 where the image must stay, 1 where it may change, in between they blend.
            Whole numbers are 0 and 1 too, or grey levels up to 255 (8 bits) or 65,535 (16 bits). Or boxes, a list of
            `{"x", "y", "width", "height"}` in relative units; or a list of any of these, one per row.
        num_rows: number of counterfactuals.
        image_size: height and width of the model's images; other masks are resized.
        latent_size: height and width of the latents.

    Returns:
        Shape `(num_rows or 1, 1, *latent_size)` in [0, 1].

    Raises:
        ValueError: for shapes, values or boxes that cannot be used.
    """
    if region is None or isinstance(region, (str, bytes, Mapping)):
        raise ValueError(
            f"`mask` must be a mask, boxes, or a list with one of them per counterfactual, not {region!r}."
        )
    if isinstance(region, (list, tuple)) and not (region and isinstance(region[0], Mapping)):
        if len(region) != num_rows:
            raise ValueError(f"`mask` as a list must hold one mask per counterfactual, {num_rows}, not {len(region)}.")
        return torch.cat([prepare_region(item, 1, image_size, latent_size) for item in region])
    mask = boxes_to_mask(region, *image_size) if isinstance(region, (list, tuple)) else _mask_values(region)
    mask = mask.reshape(1, 1, *mask.shape) if mask.ndim == 2 else mask
    mask = mask[:, None] if mask.ndim == 3 else mask
    if mask.ndim != 4 or not mask.numel() or mask.shape[1] != 1 or len(mask) not in (1, num_rows):
        raise ValueError(
            f"`mask` must have shape (height, width) or ({num_rows}, 1, height, width), but got {tuple(mask.shape)}."
        )
    if not torch.isfinite(mask).all() or mask.min() < 0 or mask.max() > 1:
        raise ValueError("`mask` must lie in [0, 1]: 0 where the image must stay, 1 where it may change.")
    if mask.shape[-2:] not in (image_size, latent_size):
        mask = F.interpolate(mask, image_size, mode="bilinear", align_corners=False)
    return F.adaptive_max_pool2d(mask, latent_size)


def _mask_values(region: Any) -> torch.Tensor:
    """A mask's numbers as float32, 1 where the image may change, still to be checked for shape and range."""
    if isinstance(region, torch.Tensor):
        values, is_whole, is_real = region, not region.is_floating_point(), not region.is_complex()
    else:
        try:
            array = _stored_levels(region) if isinstance(region, Image.Image) else np.asarray(region)
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"`mask` must be a picture, array, tensor or boxes, not {region!r}: {error}.") from None
        is_whole, is_real = array.dtype.kind in "biu", array.dtype.kind in "biuf"
        values = torch.from_numpy(array.astype(np.float32)) if is_real else torch.zeros(0)
    if not is_real:
        dtype = f" of {region.dtype}" if hasattr(region, "dtype") else ""
        raise ValueError(
            "`mask` must be a picture, boxes, or an array or tensor of real numbers or booleans, but got "
            f"{type(region).__name__}{dtype}."
        )
    values = values.float()
    largest = float(values.max()) if is_whole and values.numel() else 1.0
    if largest <= 1:
        return values
    if largest not in _FULL_LEVELS:
        raise ValueError(
            "`mask` of whole numbers must be 0 where the image must stay and 1, 255 or 65535 where it may change, but "
            f"its largest is {largest:g}. Of a map of labels take one, `mask == {largest:g}`; divide other levels "
            "yourself."
        )
    return values / largest


def _stored_levels(picture: Image.Image) -> np.ndarray:
    """A picture's pixels as they are stored, if they are grey and opaque: of others nothing says what may change."""
    if picture.mode in _GREY_MODES:
        return np.asarray(picture)
    colours = np.asarray(picture.convert("RGBA"))
    if (colours[..., 3] != 255).any() or (colours[..., :3] != colours[..., :1]).any():
        raise ValueError(
            f"`mask` must be grey, but is a picture of mode {picture.mode} with colours or transparency. Choose what "
            'says where the image may change, such as `mask.convert("L")` or `mask.getchannel("A")`.'
        )
    return colours[..., 0]


def boxes_to_mask(boxes: Sequence[Mapping[str, float]], height: int, width: int) -> torch.Tensor:
    """1 inside any of the boxes, 0 elsewhere; shape `(height, width)`.

    Args:
        boxes: `x`, `y` of the upper left corner, `width` and `height`, in relative units in [0, 1].
        height: of the mask in pixels.
        width: of the mask in pixels.

    Raises:
        ValueError: for a box that lacks a side, covers nothing, or is told in pixels.
    """
    mask = torch.zeros(height, width)
    for box in boxes:
        try:
            sides = [float(box[name]) for name in ("x", "y", "width", "height")]
        except KeyError as error:
            raise ValueError(
                f"A box of `mask` needs x, y, width and height in relative units, but {dict(box)} lacks {error}."
            ) from None
        except (TypeError, ValueError):
            sides = [math.nan]
        if not all(map(math.isfinite, sides)):
            raise ValueError(f"x, y, width and height of a box of `mask` must be finite numbers, but got {box!r}.")
        if max(sides[2:]) > 1 + 1e-3:
            raise ValueError(
                f"x, y, width and height of a box of `mask` are relative, in [0, 1], but got {dict(box)}. Divide "
                "pixels by the image's width and height."
            )
        rows = _covered(sides[1], sides[3], height)
        columns = _covered(sides[0], sides[2], width)
        if not mask[rows, columns].numel():
            raise ValueError(f"The box {dict(box)} covers no pixel; x, y, width and height are relative, in [0, 1].")
        mask[rows, columns] = 1
    return mask


def _covered(start: float, length: float, num_pixels: int) -> slice:
    """The pixels along one side that a box touches; none where it ends before it begins, or before the image does."""
    if length <= 0:
        return slice(0)
    first, last = math.floor(start * num_pixels), math.ceil((start + length) * num_pixels)
    return slice(max(first, 0), max(last, 0))


def region_to_pixels(region: np.ndarray, num_rows: int, image_size: tuple[int, int]) -> np.ndarray:
    """A region on the latents' grid at the size of the pictures, one per counterfactual.

    Args:
        region: shape `(num_rows or 1, 1, height, width)`, as the pipeline returns it.
        num_rows: number of counterfactuals.
        image_size: height and width of the pictures.

    Returns:
        Shape `(num_rows, 1, *image_size)`, values as in `region`.
    """
    rows, columns = (
        np.arange(pixels) * positions // pixels
        for pixels, positions in zip(image_size, region.shape[-2:], strict=True)
    )
    return np.broadcast_to(region, (num_rows, *region.shape[1:]))[..., rows[:, None], columns]


def region_of_change(deviation: torch.Tensor, energy_share: float = 0.5) -> torch.Tensor:
    """Where an edit changed the latents most: the smallest region that holds a share of the change's energy.

    So a finding in one place gets a small region, and one that is everywhere a large one.

    Args:
        deviation: counterfactual minus null edit, shape `(rows, channels, height, width)`.
        energy_share: of the squared change (its mean over channels, averaged over 3 x 3 positions), in (0, 1].

    Returns:
        1 inside, 0 outside, shape `(rows, 1, height, width)`; 0 everywhere where nothing changed.
    """
    size = _mean_3x3(deviation.float().abs().mean(1, keepdim=True))
    return _smallest_region(size.square(), energy_share).to(deviation)


def region_of_evidence(
    evidence: torch.Tensor, share: float = 0.6, in_one_place: torch.Tensor | None = None
) -> torch.Tensor:
    """Where a change convinced a classifier: the smallest region with a share of the evidence, and its surroundings.

    A change may well be larger than its reason: what is removed from one lung is faintly mended in the other as well,
    where the classifier sees nothing. What speaks against the target counts as nothing.

    What convinces lies densest in the middle of a finding, which reaches further: the region grows by one position,
    and its border is soft.

    An average over noises hedges, moreover: a finding that might be added in either lung comes half in both. It must
    be taken away wherever it is, but one place is enough to have it: the connected part with most of the evidence.

    Args:
        evidence: what each position adds to the log-odds of the target, shape `(rows, 1, height, width)`; see
            [`~mediffusion_diffusers.guidance.attribute_change`].
        share: of the evidence above 0 (averaged over 3 x 3 positions), in (0, 1]; with what lies around the region may
            hold more, and one place less.
        in_one_place: rows of which only one connected part stays, bool, shape `(rows,)`.

    Returns:
        The region, grown by one position and then averaged over 3 x 3, shape `(rows, 1, height, width)`, in [0, 1]; 0
        everywhere where nothing speaks for the target.
    """
    density = _mean_3x3(evidence.float()).clamp_min(0)
    region = _smallest_region(density, share)
    if in_one_place is not None:
        region = torch.where(in_one_place.view(-1, 1, 1, 1), _strongest_part(region, density), region)
    return _mean_3x3(F.max_pool2d(region, 3, stride=1, padding=1)).to(evidence)


def _strongest_part(region: torch.Tensor, density: torch.Tensor) -> torch.Tensor:
    """Of a region of ones the connected part, diagonals included, with the largest sum; same shape.

    On the CPU, since each round asks whether there is another; what is asked is as small as latents.
    """
    device, region, density = region.device, region.cpu(), density.cpu()
    numbers = torch.arange(1, region[0].numel() + 1, dtype=torch.float32).view_as(region[0])
    parts = numbers * region  # 0 outside
    for _ in range(region[0].numel()):  # the largest number in reach, at most once around each position
        spread = F.max_pool2d(parts, 3, stride=1, padding=1) * region
        if torch.equal(spread, parts):
            break
        parts = spread
    places = parts.flatten(1).long()
    sums = torch.zeros(len(places), places.shape[1] + 1)
    sums = sums.scatter_add(1, places, (density * region).flatten(1))
    strongest = sums[:, 1:].argmax(1) + 1
    return (region * (parts == strongest.view(-1, 1, 1, 1))).to(device)


def _smallest_region(density: torch.Tensor, share: float) -> torch.Tensor:
    """1 where a density is largest, such that its sum there is a share of the whole, and 0 elsewhere; same shape."""
    values, places = density.flatten(1).sort(dim=1, descending=True)
    before = values.cumsum(1) - values  # what larger ones hold together
    is_inside = (before < share * values.sum(1, keepdim=True)) & (values > 0)
    return torch.zeros_like(values).scatter(1, places, is_inside.to(values)).view_as(density)


def _mean_3x3(values: torch.Tensor) -> torch.Tensor:
    """Mean over each position and its neighbours, of those that exist; same shape."""
    return F.avg_pool2d(values, 3, stride=1, padding=1, count_include_pad=False)
