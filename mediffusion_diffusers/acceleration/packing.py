"""Models whose convolutions keep their weights prepared, instead of preparing them at every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers.utils import logging
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from .kernels import Geometry, Kernel, prepare_kernels


logger = logging.get_logger(__name__)

ModuleType = TypeVar("ModuleType", bound=nn.Module)

# Prepared and eager sums of float32 round differently; a wrong result is off by orders of magnitude more.
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


def prepack_convolutions(module: nn.Module, winograd: bool = True) -> PrepackedConvolutions:
    """Prepare the weights of a model's convolutions once, for the kernels that serve their shapes best.

    At small batches an eager convolution of many channels spends more time on bringing its weight into oneDNN's own
    layout than on arithmetic. Kept in that layout it need not; and 3x3 convolutions at larger sizes become matrix
    products with a quarter of the multiplications (see [`~mediffusion_diffusers.acceleration.winograd`]). What is
    fastest is taken from the shapes, so that equal calls give equal results.

    A layer prepares its weight at its first call, for the image size that it meets, and again when that size or the
    weight changes. The result, and at the first backward pass the gradient of its input, are compared with the eager
    ones once per distinct shape. Whatever cannot run so stays eager by itself: other devices and dtypes, autocast,
    `torch.compile`, trainable weights while a graph is recorded, groups, padding modes other than zeros, layers with
    offloading or casting hooks, shapes that would not gain, failed comparisons. Parameters, buffers and `state_dict`
    are left alone. Gradients reach the input only, and only once (no second derivatives).

    The prepared weights take memory besides the model's: as much again, four times as much for layers at large sizes,
    and the same once more for layers that a gradient passes through.

    Args:
        module: any model on the CPU; its convolutions change their class until `remove`.
        winograd: whether to take fewer multiplications where that is faster; without, only oneDNN's direct
            convolution. Both round differently from the eager one, by about 2e-6 and 1e-6 of the result.

    Returns:
        A handle to undo it, which is a context manager too.

    Example:
        ```py
        >>> import torch
        >>> from mediffusion_diffusers.acceleration import prepack_convolutions

        >>> layer = torch.nn.Conv2d(256, 256, 3, padding=1).requires_grad_(False)
        >>> image = torch.randn(1, 256, 32, 32)
        >>> eager = layer(image)
        >>> with prepack_convolutions(layer) as packing:
        ...     torch.testing.assert_close(layer(image), eager, rtol=1e-4, atol=1e-4)
        ...     print(packing.num_packed)
        1
        ```
    """
    return PrepackedConvolutions(module, winograd)


class PrepackedConvolutions:
    """Handle of `prepack_convolutions`.

    Args:
        module: the model.
        winograd: whether to consider kernels with fewer multiplications.
    """

    def __init__(self, module: nn.Module, winograd: bool = True):
        convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
        self.layers: list[Any] = [layer for layer in convolutions if _can_be_packed(layer)]
        choice = KernelChoice(winograd)
        for layer in self.layers:
            layer.__class__ = PrepackedConv2d
            layer.packed, layer.choice = None, choice
        logger.info(
            f"{len(self.layers)} of {len(convolutions)} convolutions of {type(module).__name__} may run with prepared "
            "weights, the others as before."
        )

    @property
    def num_packed(self) -> int:
        """Layers that hold a prepared weight now: none before the first call, not all where eager is as fast."""
        return sum(layer.packed is not None and layer.packed.kernel is not None for layer in self.layers)

    def remove(self) -> None:
        """Give the layers back their class and free the prepared weights."""
        for layer in self.layers:
            layer.__class__ = nn.Conv2d
            del layer.packed, layer.choice
        self.layers = []

    def __enter__(self) -> PrepackedConvolutions:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class PrepackedConv2d(nn.Conv2d):
    """A convolution that `prepack_convolutions` has taken over; never built directly."""

    packed: PackedWeight | None
    choice: KernelChoice

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `nn.Conv2d.forward`."""
        if not self._accepts(input):
            return super().forward(input)
        if self.packed is None or not self.packed.fits(self.weight, input):
            self.packed = PackedWeight(self, input)
        if self.packed.kernel is None:
            return super().forward(input)
        return _PackedConvolution.apply(input, self.bias, self.packed)

    def _accepts(self, input: torch.Tensor) -> bool:
        """Whether this call may run with a prepared weight."""
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
        """Copies prepare their weight anew: oneDNN's layouts can be neither copied nor pickled."""
        return {**self.__dict__, "packed": None}


class KernelChoice:
    """The kernels that have proved right, by shape; one for all layers of a model.

    Args:
        winograd: whether to consider kernels with fewer multiplications.
    """

    def __init__(self, winograd: bool):
        self.winograd = winograd
        self.agreements: dict[tuple[Any, ...], bool] = {}

    def prepare(
        self,
        weight: torch.Tensor,
        geometry: Geometry,
        input_shape: torch.Size,
        eager: Callable[[torch.Tensor], torch.Tensor],
    ) -> Kernel | None:
        """Prepare a weight for the fastest kernel that agrees with the eager one.

        Args:
            weight: shape `(out_channels, in_channels, height, width)`.
            geometry: of the convolution with it.
            input_shape: of that convolution's input.
            eager: the same convolution without a bias.

        Returns:
            The kernel, or `None` if the eager convolution serves best.
        """
        # Not under an outer inference mode, whose tensors could not serve a later gradient.
        with torch.inference_mode(False), torch.no_grad():
            for name, make in prepare_kernels(weight.detach(), geometry, input_shape, self.winograd):
                key = (name, weight.shape, geometry, input_shape)
                if not self.agreements.get(key, True):
                    continue
                try:
                    kernel = make()
                    error = 0.0 if key in self.agreements else _relative_error(kernel, eager, input_shape)
                    reason = f"it differs from the eager result by {error:.1e}"
                except (RuntimeError, AttributeError) as failure:  # AttributeError: a torch without the operator
                    error, reason = float("inf"), str(failure).splitlines()[0]
                self.agreements[key] = error <= MAX_RELATIVE_ERROR
                if self.agreements[key]:
                    return kernel
                logger.warning(
                    f"Convolutions with weights {tuple(weight.shape)} on inputs {tuple(input_shape)} do not take the "
                    f"kernel {name!r}: {reason}."
                )
        return None


class PackedWeight:
    """A layer's weight prepared for one image size, and for the gradient of its input once that is needed.

    Args:
        layer: the convolution.
        input: what it is called with, shape `(batch, in_channels, height, width)`.
    """

    def __init__(self, layer: PrepackedConv2d, input: torch.Tensor):
        self.source, self.state = layer.weight, _state_of(layer.weight)
        self.image_size = input.shape[2:]
        self.geometry = Geometry(layer.stride, layer.padding, layer.dilation)  # type: ignore[arg-type]
        self.choice = layer.choice
        self.kernel = self.choice.prepare(
            layer.weight,
            self.geometry,
            input.shape,
            lambda sample: F.conv2d(sample, self.source, None, *self.geometry),
        )
        self.has_seen_gradient = False
        self.gradient_kernel: Kernel | None = None

    def fits(self, weight: torch.Tensor, input: torch.Tensor) -> bool:
        """Whether weight and image size are still those that were prepared for; a batch of any size fits."""
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
        kernel_size = self.source.shape[2:]
        gradient_padding = tuple(d * (k - 1) - p for d, k, p in zip(dilation, kernel_size, padding, strict=True))

        def eager(gradient: torch.Tensor) -> torch.Tensor:
            return conv2d_input(input_shape, self.source, gradient, *self.geometry)

        if not self.has_seen_gradient:
            self.has_seen_gradient = True
            if stride == (1, 1) and min(gradient_padding) >= 0:
                flipped = self.source.detach().flip(2, 3).transpose(0, 1).contiguous()
                geometry = Geometry((1, 1), gradient_padding, dilation)
                self.gradient_kernel = self.choice.prepare(flipped, geometry, gradient.shape, eager)
        return eager(gradient) if self.gradient_kernel is None else self.gradient_kernel(gradient, None)


class _PackedConvolution(torch.autograd.Function):
    """A prepared convolution that autograd can pass through towards the input."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, bias: torch.Tensor | None, packed: PackedWeight) -> torch.Tensor:
        ctx.input_shape, ctx.packed = input.shape, packed
        return packed.kernel(input, bias)  # type: ignore[misc]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.packed.input_gradient(gradient, ctx.input_shape), None, None


def _relative_error(kernel: Kernel, eager: Callable[[torch.Tensor], torch.Tensor], input_shape: torch.Size) -> float:
    """Difference of two convolutions of random numbers, as a share of the result's size."""
    # A generator of its own: preparing must not move the user's random numbers.
    sample = torch.randn(input_shape, generator=torch.Generator().manual_seed(0))
    expected = eager(sample)
    return float((kernel(sample, None) - expected).norm() / expected.norm())


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
