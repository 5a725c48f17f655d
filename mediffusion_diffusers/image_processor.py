"""Images in, images out: the one home of the model's value range [-1, 1] and of decoding pictures of any bit depth.

Training and inference read pictures through this module, so a picture means the same numbers in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from PIL import ExifTags, Image

from .item_boundary import reason


ImageInput = (
    Image.Image | np.ndarray | torch.Tensor | list[Image.Image] | list[np.ndarray] | list[torch.Tensor]
)  # the types that diffusers calls `PipelineImageInput`

# ITU-R 601-2 luma, the weights of PIL's own conversion to "L".
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# How to undo each EXIF orientation; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_KEPT_IN = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # entries of `Image.info`
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_PIXELS_AT_ONCE = 2**20


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Map images from [0, 1] to the model's range [-1, 1]."""
    return images * 2.0 - 1.0


def denormalize(images: torch.Tensor) -> torch.Tensor:
    """Map images from the model's range [-1, 1] to [0, 1], clamping what lies outside."""
    return (images * 0.5 + 0.5).clamp(0.0, 1.0)


def upright(image: Image.Image, name: str | None = None) -> Image.Image:
    """Decode a picture of one frame and turn it as its EXIF orientation says.

    Of a phone's multi-picture file (MPO) the primary image counts; the others are previews or depths of the same
    view. A broken EXIF says nothing of the picture and is passed over.

    Args:
        image: an opened picture; it is not changed.
        name: what to call it in an error message; by default its file name.

    Returns:
        The picture itself where nothing is to be turned.

    Raises:
        ValueError: for a file that cannot be decoded, or several frames.
    """
    name = name or getattr(image, "filename", "")
    try:
        num_frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        image.load()
    except Exception as error:  # decoders raise what the damage leads them to
        raise ValueError(
            f"Cannot decode {name or 'the image'}: the file is corrupt or truncated ({reason(error)})."
        ) from error
    if num_frames > 1:
        raise ValueError(
            f"{name or 'The image'} holds {num_frames} frames, but one frame is expected. Choose one, for example "
            "`image.seek(0); image = image.copy()`."
        )
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        turn = None
    if turn is None:
        return image
    turned = image.transpose(turn)
    for key in _ORIENTATION_KEPT_IN:
        turned.info.pop(key, None)
    return turned


def pil_to_float_array(image: Image.Image, channels: int) -> np.ndarray:
    """Decode a picture of any common mode into floats, without clipping 16-bit values.

    8-bit modes are divided by 255 and 16-bit modes by 65,535; floating-point pictures must already lie in [0, 1].
    Alpha is composited onto black, palettes are resolved, colour becomes grey by ITU-R 601 luma and grey is repeated
    to colour, so that any picture fits a model with `channels` input channels. An EXIF orientation is applied, as
    `datasets` and diffusers' `load_image` do.

    Args:
        image: a single-frame picture.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        Array of shape `(height, width, channels)`, float32 in [0, 1].

    Raises:
        ValueError: for several frames, an unreadable file, values outside the range of the mode, or an odd `channels`.
    """
    image = upright(image)
    array = np.empty((image.height, image.width, channels), dtype=np.float32)
    top = 0
    for rows in float_strips(image, channels):
        array[top : top + len(rows)] = rows
        top += len(rows)
    return array


def pil_to_tensor(image: Image.Image, channels: int, height: int, width: int) -> torch.Tensor:
    """Decode a picture as `pil_to_float_array` does, and resize it as `resize` does.

    A large picture is never held in floating point as a whole: 48 megapixels of colour would take 576 MB. Resizing is
    separable, so that its strips of rows may be made narrower one by one, and the result shorter at the end.

    Args:
        image: a single-frame picture.
        channels: 1 (grey) or 3 (RGB).
        height: of the result in pixels.
        width: likewise.

    Returns:
        Shape `(channels, height, width)`, float32 in [0, 1].

    Raises:
        ValueError: as `pil_to_float_array`.
    """
    image = upright(image)
    strips = []
    for rows in float_strips(image, channels):
        pixels = torch.from_numpy(np.ascontiguousarray(rows)).permute(2, 0, 1)[None]
        if len(rows) == image.height:
            return resize(pixels, height, width)[0]
        strips.append(resize(pixels, len(rows), width))
    return resize(torch.cat(strips, dim=2), height, width)[0]


def float_strips(image: Image.Image, channels: int) -> Iterator[np.ndarray]:
    """A decoded, upright picture from top to bottom, some rows at a time, as one strip if it is of ordinary size.

    Yields:
        Arrays of shape `(rows, width, channels)`, float32 in [0, 1].
    """
    if channels not in (1, 3):
        raise ValueError(f"`channels` must be 1 (grey) or 3 (RGB), but got {channels}.")
    num_rows = max(1, _PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, num_rows):
        bottom = min(top + num_rows, image.height)
        whole = bottom - top == image.height
        yield _to_floats(image if whole else image.crop((0, top, image.width, bottom)), channels)


def _to_floats(image: Image.Image, channels: int) -> np.ndarray:
    """Pixels of any mode as float32 `(height, width, channels)` in [0, 1]."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(
                f"A picture of mode {image.mode!r} must hold values in [0, 65535], but got "
                f"[{levels.min()}, {levels.max()}]. Rescale it first."
            )
        floats = levels.astype(np.uint16) / np.float32(65535)
    elif image.mode == "F":
        floats = np.array(image, dtype=np.float32)
        if not (np.isfinite(floats).all() and floats.min() >= 0 and floats.max() <= 1):
            raise ValueError("A floating-point picture (mode 'F') must be finite and lie in [0, 1]. Rescale it first.")
    else:
        if image.mode in _PREMULTIPLIED:
            image = image.convert(_PREMULTIPLIED[image.mode])
        if "A" in image.getbands() or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
        elif image.mode != "L":
            image = image.convert("RGB")
        floats = np.asarray(image) / np.float32(255)
    return _match_channels(floats[..., None] if floats.ndim == 2 else floats, channels)


def _match_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """Turn `(..., 1 or 3)` into `(..., channels)`: luma for colour to grey, repetition for grey to colour."""
    if array.shape[-1] == channels:
        return array
    if channels == 1:
        return (array @ _LUMA)[..., None]
    return np.repeat(array, 3, axis=-1)


class MediffusionImageProcessor(ConfigMixin):
    """Turn PIL images, arrays or tensors of any size into model input, and model output back.

    Accepted by `preprocess`, alone or as a list (sizes may differ within a list):

    - PIL images of any mode, 16-bit included;
    - numpy arrays `(height, width)`, `(height, width, channels)` or `(batch, height, width, channels)`, uint8, uint16
      or floating point in [0, 1];
    - tensors `(height, width)`, `(channels, height, width)` or `(batch, channels, height, width)`, uint8 or floating
      point in [0, 1].

    Args:
        channels: input channels of the model: 1 (grey) or 3 (RGB). The other kind is converted.
    """

    config_name = "image_processor_config.json"

    @register_to_config
    def __init__(self, channels: int = 1):
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"`channels` must be 1 (grey) or 3 (RGB), but got {channels}.")

    def preprocess(self, images: ImageInput, height: int, width: int) -> torch.Tensor:
        """Read, convert and resize images.

        Args:
            images: see the class.
            height: height of the result in pixels.
            width: width of the result in pixels.

        Returns:
            Tensor of shape `(batch, channels, height, width)`, float32 in [-1, 1].

        Raises:
            ValueError: for no image, a wrong number of channels, values that are NaN, infinite or outside their range.
        """
        return normalize(torch.stack([self._to_tensor(image, height, width) for image in _as_list(images)]))

    def postprocess(
        self, images: torch.Tensor, output_type: str = "pil"
    ) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Turn model output into pictures.

        Args:
            images: shape `(batch, channels, height, width)` in [-1, 1].
            output_type: `"pil"`, `"np"` (`(batch, height, width, channels)`) or `"pt"`.

        Returns:
            Pictures in [0, 1] (8 bit for `"pil"`).

        Raises:
            ValueError: for an unknown `output_type`.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt', but got {output_type!r}.")
        images = denormalize(images.detach().float())
        if output_type == "pt":
            return images
        array = images.cpu().permute(0, 2, 3, 1).numpy()
        return array if output_type == "np" else numpy_to_pil(array)

    def _to_tensor(self, image: Any, height: int, width: int) -> torch.Tensor:
        """One picture of any accepted kind as float32 `(self.channels, height, width)` in [0, 1]."""
        if isinstance(image, Image.Image):
            return pil_to_tensor(image, self.config.channels, height, width)
        pixels = torch.from_numpy(np.ascontiguousarray(self._to_array(image))).permute(2, 0, 1)[None]
        return resize(pixels, height, width)[0]

    def _to_array(self, image: Any) -> np.ndarray:
        """An array or tensor as float32 `(height, width, self.channels)` in [0, 1]."""
        if isinstance(image, torch.Tensor):
            tensor = image.detach().cpu()
            array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
            array = array.transpose(1, 2, 0) if array.ndim == 3 else array
            layout = "(channels, height, width)"
        elif isinstance(image, np.ndarray):
            array, layout = np.asarray(image), "(height, width, channels)"  # what a mask hides counts too
        else:
            raise ValueError(
                f"An image must be a PIL image, a numpy array or a torch tensor, but got {type(image).__name__}."
            )
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[-1] not in (1, 3):
            raise ValueError(
                f"An image must have 1 (grey) or 3 (RGB) channels in the layout {layout}, but got shape "
                f"{tuple(image.shape)}."
            )
        if array.size == 0:
            raise ValueError(f"An image must have a height and a width above 0, but got shape {tuple(image.shape)}.")
        return _match_channels(_to_unit_range(array), self.config.channels)


def numpy_to_pil(array: np.ndarray) -> list[Image.Image]:
    """Turn `(batch, height, width, 1 or 3)` in [0, 1] into 8-bit pictures of mode "L" or "RGB"."""
    pixels = (array * 255.0).round().clip(0, 255).astype(np.uint8)
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]


def resize(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize `(batch, channels, H, W)` bilinearly, with antialiasing when it shrinks; the identity at equal size."""
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False, antialias=True)


def _as_list(images: Any) -> list[Any]:
    """Flatten any accepted input into a list of single pictures."""
    items = list(images) if isinstance(images, (list, tuple)) else [images]
    flat: list[Any] = []
    for item in items:
        flat.extend(item if isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim == 4 else [item])
    if not flat:
        raise ValueError("At least one image is expected, but the list is empty.")
    return flat


def _to_unit_range(array: np.ndarray) -> np.ndarray:
    """Bring integer or floating-point pixels to float32 in [0, 1], refusing what is not a picture."""
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:  # of either byte order
        return (array / np.float32(np.iinfo(array.dtype).max)).astype(np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"An image array must be uint8, uint16 or floating point in [0, 1], but its dtype is {array.dtype}."
        )
    if not np.isfinite(array).all():
        raise ValueError("The image holds NaN or infinite values. Fill or mask them before calling the pipeline.")
    if not (array.min() >= -1e-4 and array.max() <= 1 + 1e-4):
        raise ValueError(
            f"A floating-point image must lie in [0, 1], but its values span [{array.min():.3g}, {array.max():.3g}]. "
            "Rescale it (for example `(image + 1) / 2` from [-1, 1], or `image / 255`)."
        )
    return array.astype(np.float32)
