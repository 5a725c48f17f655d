"""Images in, images out: the one home of the model's value range [-1, 1] and of decoding pictures of any bit depth.

Training and inference read pictures through this module, so a picture means the same numbers in both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from PIL import Image, ImageOps


ImageInput = (
    Image.Image | np.ndarray | torch.Tensor | list[Image.Image] | list[np.ndarray] | list[torch.Tensor]
)  # the types that diffusers calls `PipelineImageInput`

# ITU-R 601-2 luma, the weights of PIL's own conversion to "L".
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Map images from [0, 1] to the model's range [-1, 1]."""
    return images * 2.0 - 1.0


def denormalize(images: torch.Tensor) -> torch.Tensor:
    """Map images from the model's range [-1, 1] to [0, 1], clamping what lies outside."""
    return (images * 0.5 + 0.5).clamp(0.0, 1.0)


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
    if channels not in (1, 3):
        raise ValueError(f"`channels` must be 1 (grey) or 3 (RGB), but got {channels}.")
    try:
        num_frames = getattr(image, "n_frames", 1)
        image = ImageOps.exif_transpose(image)  # also decodes the picture
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        name = getattr(image, "filename", "") or "the image"
        raise ValueError(f"Cannot decode {name}: the file is corrupt or truncated ({error}).") from error
    if num_frames > 1:
        raise ValueError(
            f"The image holds {num_frames} frames, but one frame is expected. Choose one, for example "
            "`image.seek(0); image = image.copy()`."
        )

    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(
                f"A picture of mode {image.mode!r} must hold values in [0, 65535], but got "
                f"[{levels.min()}, {levels.max()}]. Rescale it first."
            )
        floats = (levels / 65535.0).astype(np.float32)[..., None]
    elif image.mode == "F":
        floats = np.asarray(image, dtype=np.float32)[..., None]
        if not np.isfinite(floats).all() or floats.min() < 0 or floats.max() > 1:
            raise ValueError("A floating-point picture (mode 'F') must be finite and lie in [0, 1]. Rescale it first.")
    else:
        if "A" in image.getbands() or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
        elif image.mode != "L":
            image = image.convert("RGB")
        floats = (np.asarray(image) / 255.0).astype(np.float32)
        floats = floats[..., None] if floats.ndim == 2 else floats
    return _match_channels(floats, channels)


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
        arrays = [self._to_array(image) for image in _as_list(images)]
        tensors = [torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None] for array in arrays]
        return normalize(torch.cat([resize(tensor, height, width) for tensor in tensors]))

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

    def _to_array(self, image: Any) -> np.ndarray:
        """One picture as float32 `(height, width, self.channels)` in [0, 1]."""
        channels = self.config.channels
        if isinstance(image, Image.Image):
            return pil_to_float_array(image, channels)
        if isinstance(image, torch.Tensor):
            tensor = image.detach().cpu()
            array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
            array = array.transpose(1, 2, 0) if array.ndim == 3 else array
            layout = "(channels, height, width)"
        elif isinstance(image, np.ndarray):
            array, layout = image, "(height, width, channels)"
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
        return _match_channels(_to_unit_range(array), channels)


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
    if array.dtype in (np.uint8, np.uint16):
        return (array / np.float32(np.iinfo(array.dtype).max)).astype(np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"An image array must be uint8, uint16 or floating point in [0, 1], but its dtype is {array.dtype}."
        )
    if not np.isfinite(array).all():
        raise ValueError("The image holds NaN or infinite values. Fill or mask them before calling the pipeline.")
    if array.min() < -1e-4 or array.max() > 1 + 1e-4:
        raise ValueError(
            f"A floating-point image must lie in [0, 1], but its values span [{array.min():.3g}, {array.max():.3g}]. "
            "Rescale it (for example `(image + 1) / 2` from [-1, 1], or `image / 255`)."
        )
    return array.astype(np.float32)
