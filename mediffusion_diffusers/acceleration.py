"""Speed on the CPU that leaves every value as it is: memory layout, and convolution weights packed once for oneDNN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from diffusers.utils import logging
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input


logger = logging.get_logger(__name__)

ModuleType = TypeVar("ModuleType", bound=nn.Module)

# Packed and eager sums of float32 differ in their order alone; a wrong result is off by orders of magnitude more.
MAX_RELATIVE_ERROR = 1e-5


def to_channels_last(module: ModuleType) -> ModuleType:
    """Lay out a model's 4-d weights as (out, height, width, in), the order in which CPU convolutions read.

    Values, names and shapes stay; the activations follow the weights' layout by themselves.

    Args:
        module: any model; changed in place.

    Returns:
        The same model.
    """
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def prepack_convolutions(module: nn.Module) -> PrepackedConvolutions:
    """Let a model's convolutions keep their weights in oneDNN's own blocked layout, instead of packing at every call.

    At small batches that repeated packing costs more than the arithmetic of the wide, low-resolution layers. Worth it
    for the U-Net; an autoencoder's large images hide it. Takes as much memory again as the convolution weights, and
    once more for those that a gradient passes through.

    A layer packs at its first call, for the image size that it meets, and again when that size or the weight changes.
    The packed result, and at the first backward pass its input gradient, are compared with the eager ones once per
    distinct shape. Whatever cannot be packed stays eager by itself: other devices and dtypes, autocast,
    `torch.compile`, trainable weights while a graph is recorded, groups, padding modes other than zeros, layers with
    offloading or casting hooks, failed comparisons. Parameters, buffers and `state_dict` are left alone. Gradients
    reach the input only, and only once (no second derivatives).

    Args:
        module: any model on the CPU; its convolutions change their class until `remove`.

    Returns:
        A handle to undo it, which is a context manager too.

    Example:
        ```py
        >>> import torch
        >>> from mediffusion_diffusers.acceleration import prepack_convolutions

        >>> layer = torch.nn.Conv2d(4, 8, 3).requires_grad_(False)
        >>> image = torch.randn(1, 4, 16, 16)
        >>> eager = layer(image)
        >>> with prepack_convolutions(layer):
        ...     torch.testing.assert_close(layer(image), eager)
        ```
    """
    return PrepackedConvolutions(module)


class PrepackedConvolutions:
    """Handle of `prepack_convolutions`.

    Args:
        module: the model.
    """

    def __init__(self, module: nn.Module):
        convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
        self.layers: list[Any] = [layer for layer in convolutions if _can_be_packed(layer)]
        agreements: dict[tuple[Any, ...], bool] = {}
        for layer in self.layers:
            layer.__class__ = PrepackedConv2d
            layer.packed, layer.agreements = None, agreements
        logger.info(
            f"{len(self.layers)} of {len(convolutions)} convolutions of {type(module).__name__} will run with packed "
            "weights, the others as before."
        )

    @property
    def num_packed(self) -> int:
        """Layers that hold a packed weight now: none before the first call, fewer than `layers` after a fallback."""
        return sum(layer.packed is not None and layer.packed.weight is not None for layer in self.layers)

    def remove(self) -> None:
        """Give the layers back their class and free the packed weights."""
        for layer in self.layers:
            layer.__class__ = nn.Conv2d
            del layer.packed, layer.agreements
        self.layers = []

    def __enter__(self) -> PrepackedConvolutions:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class PrepackedConv2d(nn.Conv2d):
    """A convolution that `prepack_convolutions` has taken over; never built directly."""

    packed: PackedWeight | None
    agreements: dict[tuple[Any, ...], bool]  # whether packed equals eager, by shape; shared by a model's layers

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `nn.Conv2d.forward`."""
        if not self._accepts(input):
            return super().forward(input)
        if self.packed is None or not self.packed.fits(self.weight, input):
            self.packed = PackedWeight(self, input)
        if self.packed.weight is None:
            return super().forward(input)
        return _PackedConvolution.apply(input, self.bias, self.packed)

    def _accepts(self, input: torch.Tensor) -> bool:
        """Whether this call may run packed."""
        parameters = [self.weight] if self.bias is None else [self.weight, self.bias]
        return bool(
            torch.backends.mkldnn.enabled
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled("cpu")
            and not (torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters))
            and not self.weight.is_inference()  # changes of its values would go unnoticed
            and all(tensor.device.type == "cpu" for tensor in (input, *parameters))
            and all(tensor.dtype == torch.float32 for tensor in (input, *parameters))
            and input.ndim == 4
            and input.numel() > 0
        )

    def __getstate__(self) -> dict[str, Any]:
        """Copies pack anew: a packed weight can be neither copied nor pickled."""
        return {**self.__dict__, "packed": None}


class Geometry(NamedTuple):
    """How a convolution moves over the image, along height and width."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


class PackedWeight:
    """A layer's weight in oneDNN's layout for one image size, and that of its input gradient once it is needed.

    Args:
        layer: the convolution.
        input: what it is called with, shape `(batch, in_channels, height, width)`.
    """

    def __init__(self, layer: PrepackedConv2d, input: torch.Tensor):
        self.source, self.state = layer.weight, _state_of(layer.weight)
        self.image_size = input.shape[2:]
        self.geometry = Geometry(layer.stride, layer.padding, layer.dilation)  # type: ignore[arg-type]
        self.agreements = layer.agreements
        self.weight = self._pack(
            layer.weight,
            self.geometry,
            input.shape,
            lambda sample: F.conv2d(sample, self.source, None, *self.geometry),
        )
        self.has_seen_gradient = False
        self.gradient_weight: torch.Tensor | None = None

    def fits(self, weight: torch.Tensor, input: torch.Tensor) -> bool:
        """Whether weight and image size are still those that were packed; a batch of any size fits."""
        return self.image_size == input.shape[2:] and self.source is weight and self.state == _state_of(weight)

    def input_gradient(self, gradient: torch.Tensor, input_shape: torch.Size) -> torch.Tensor:
        """Gradient with respect to the input: at stride 1 a convolution with the flipped, transposed weight.

        Args:
            gradient: with respect to the output.
            input_shape: of the input.

        Returns:
            Shape `input_shape`.
        """
        stride, padding, dilation = self.geometry
        kernel = self.source.shape[2:]
        gradient_padding = tuple(d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True))
        geometry = Geometry((1, 1), gradient_padding, dilation)

        def eager(gradient: torch.Tensor) -> torch.Tensor:
            return conv2d_input(input_shape, self.source, gradient, *self.geometry)

        if not self.has_seen_gradient:
            self.has_seen_gradient = True
            if stride == (1, 1) and min(gradient_padding) >= 0:
                flipped = self.source.detach().flip(2, 3).transpose(0, 1).contiguous()
                self.gradient_weight = self._pack(flipped, geometry, gradient.shape, eager)
        if self.gradient_weight is None:
            return eager(gradient)
        return _convolve_packed(gradient, self.gradient_weight, None, geometry)

    def _pack(
        self,
        weight: torch.Tensor,
        geometry: Geometry,
        input_shape: torch.Size,
        eager: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor | None:
        """Pack a weight, and once per distinct shape compare its result on random numbers with the eager one.

        Args:
            weight: shape `(out_channels, in_channels, height, width)`.
            geometry: of the convolution with it.
            input_shape: of that convolution's input.
            eager: the same convolution without a bias.

        Returns:
            The packed weight, or `None` if it is of no use.
        """
        key = (weight.shape, geometry, input_shape)
        if not self.agreements.get(key, True):
            return None
        reason = ""
        try:
            # Not under an outer inference mode, whose tensors could not serve a later gradient.
            with torch.inference_mode(False), torch.no_grad():
                packed = torch.ops.mkldnn._reorder_convolution_weight(
                    weight.detach(), geometry.padding, geometry.stride, geometry.dilation, 1, list(input_shape)
                )
                if key not in self.agreements:
                    # A generator of its own: packing must not move the user's random numbers.
                    sample = torch.randn(input_shape, generator=torch.Generator().manual_seed(0))
                    expected = eager(sample)
                    error = float(
                        (_convolve_packed(sample, packed, None, geometry) - expected).norm() / expected.norm()
                    )
                    self.agreements[key] = error <= MAX_RELATIVE_ERROR
                    reason = f"packed, they differ from the eager result by {error:.1e}"
        except (RuntimeError, AttributeError) as failure:  # AttributeError: a torch without these operators
            self.agreements[key] = False
            reason = str(failure).splitlines()[0]
        if self.agreements[key]:
            return packed
        logger.warning(
            f"Convolutions with weights {tuple(weight.shape)} on inputs {tuple(input_shape)} stay eager: {reason}."
        )
        return None


class _PackedConvolution(torch.autograd.Function):
    """A packed convolution that autograd can pass through towards the input."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, bias: torch.Tensor | None, packed: PackedWeight) -> torch.Tensor:
        ctx.input_shape, ctx.packed = input.shape, packed
        return _convolve_packed(input, packed.weight, bias, packed.geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.packed.input_gradient(gradient, ctx.input_shape), None, None


def _convolve_packed(
    input: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, geometry: Geometry
) -> torch.Tensor:
    """oneDNN's convolution with a packed weight; its result has channels-last layout."""
    stride, padding, dilation = geometry
    return torch.ops.mkldnn._convolution_pointwise(input, weight, bias, padding, stride, dilation, 1, "none", [], "")


def _can_be_packed(layer: nn.Conv2d) -> bool:
    """Whether a layer is a plain convolution whose weight nobody exchanges between calls."""
    return (
        type(layer) is nn.Conv2d
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and not {"forward", "_hf_hook", "_diffusers_hook"} & vars(layer).keys()
    )


def _state_of(weight: torch.Tensor) -> tuple[int, int]:
    """Changes with the values: address, and number of changes in place."""
    return weight.data_ptr(), weight._version
