"""A pretend accelerator: the numbers of the CPU under the rules of CUDA, and a count of what makes the host wait.

Its tensors wrap CPU tensors and claim to be elsewhere. As on CUDA, an operation on tensors of two devices raises,
except for single numbers on the CPU and for CPU indices of a tensor on the device; a generator belongs to one device;
`numpy()` raises. What makes the host wait for the device is noted with its place in the code: a value that Python
reads, a copy that does not ask to be non-blocking, a result whose shape depends on values.

PyTorch knows the device's name from `register_pretend_device` on, but it is available only within
`PretendDevice.active`. Autocast changes nothing on it, since PyTorch's rules for it are made for each device anew.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


NAME = "pretend"
PACKAGE = f"{Path(__file__).parents[2] / 'mediffusion_diffusers'}{os.sep}"
CPU = torch.device("cpu")

aten = torch.ops.aten
_COPIES = {aten._to_copy.default, aten.copy_.default}
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# Beside the pointwise ones: operations that take a single number from the CPU.
_TAKES_NUMBERS = {aten.index_put.default, aten.index_put_.default, aten.fill_.Tensor, aten.fill.Tensor}
_Generator = torch.Generator


@dataclass(frozen=True)
class Wait:
    """A moment in which the host waited for the device.

    Args:
        kind: `"read"` of a value by Python, `"download"`, `"upload"`, or `"shape"` that depends on values.
        place: file, line and function of the package, or of the caller, that brought it about.
    """

    kind: str
    place: str


class PretendTensor(torch.Tensor):
    """A tensor that claims to be on the pretend device.

    Args:
        inner: its values, on the CPU.
    """

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> PretendTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=f"{NAME}:0",
        )
        tensor.inner = inner
        return tensor

    def __repr__(self, **kwargs: Any) -> str:
        return f"PretendTensor({self.inner})"

    def tolist(self) -> Any:
        """As `torch.Tensor.tolist`, which reads the values in one copy."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """As `torch.Tensor.numpy`."""
        if not force:
            raise TypeError(f"can't convert a {NAME} tensor to numpy. Use Tensor.cpu() to copy it to the host first.")
        return self.detach().cpu().numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _DEVICE.run(func, args, kwargs or {})


class PretendGenerator(_Generator):
    """A random generator of the pretend device, with the CPU's numbers."""

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, 0)


class _GeneratorType(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _Generator)

    def __call__(cls, device: Any = "cpu") -> _Generator:
        return PretendGenerator() if torch.device(device).type == NAME else _Generator(device)


class _AnyGenerator(metaclass=_GeneratorType):
    """Stands for `torch.Generator`, which cannot make one of a device that is written in Python."""


class PretendDevice(TorchDispatchMode):
    """The device: how it runs operations, and the waits that they caused."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self.is_active = False

    @contextlib.contextmanager
    def active(self) -> Iterator[PretendDevice]:
        """Let the device exist, without waits noted so far."""
        self.waits.clear()
        self.is_active = True
        try:
            with mock.patch.object(torch, "Generator", _AnyGenerator), _Functions(), self:
                yield self
        finally:
            self.is_active = False

    @property
    def reads(self) -> list[Wait]:
        """All waits but uploads."""
        return [wait for wait in self.waits if wait.kind != "upload"]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Check the rules, note a wait, and compute on the CPU.

        Raises:
            RuntimeError: where CUDA would raise because of devices.
        """
        if _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        own = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
        wanted = kwargs.get("device")
        is_result_here = bool(own) if wanted is None else torch.device(wanted).type == NAME
        _check_devices(func, args, tensors, own)
        self._note_wait(func, args, kwargs, own, is_result_here)

        kwargs = {**kwargs, "device": CPU} if wanted is not None and is_result_here else dict(kwargs)
        kwargs.pop("pin_memory", None)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*_mapped(_inner, args), **{name: _mapped(_inner, value) for name, value in kwargs.items()})
        if func in (aten.is_pinned.default,) or not (own or is_result_here):
            return result
        known = {id(_inner(tensor)): tensor for tensor in tensors}

        def wrap(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            tensor = known.get(id(value))  # operations in place return their argument
            if tensor is None:
                with torch.inference_mode(value.is_inference()):
                    return PretendTensor(value) if is_result_here else value
            if tensor.shape != value.shape or tensor.stride() != value.stride():
                raise NotImplementedError(f"{func} changes a shape in place, which a pretend tensor cannot follow.")
            return tensor

        return _mapped(wrap, result)

    def _note_wait(self, func: Any, args: Any, kwargs: Any, own: list[Any], is_result_here: bool) -> None:
        kind = None
        if func in _COPIES:
            is_from_here = isinstance(args[0 if func is aten._to_copy.default else 1], PretendTensor)
            is_to_here = is_result_here if func is aten._to_copy.default else isinstance(args[0], PretendTensor)
            is_blocking = not (kwargs.get("non_blocking") or True in args[2:3])
            if is_blocking and is_from_here != is_to_here:
                kind = "download" if is_from_here else "upload"
        elif own and torch.Tag.data_dependent_output in func.tags:
            kind = "read"
        elif own and func in _INDEXING:
            has_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
            kind = "shape" if has_mask else None
        elif own and torch.Tag.dynamic_output_shape in func.tags and kwargs.get("output_size") is None:
            kind = "shape"
        if kind is not None:
            self.waits.append(Wait(kind, _place()))


class _Functions(TorchFunctionMode):
    """What is decided before an operation begins: the generator's device, and tensors made of Python's numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor):
            return _make_tensor(func, *args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None:
            tensor = next((value for value in args if isinstance(value, torch.Tensor)), None)
            device = torch.device(kwargs.get("device") or ("cpu" if tensor is None else tensor.device))
            if device.type != generator.device.type:
                raise RuntimeError(f"Expected a {device.type!r} generator, but got one of {generator.device.type!r}.")
        return func(*args, **kwargs)


def _make_tensor(make: Any, data: Any, *, device: Any = None, dtype: Any = None, **kwargs: Any) -> torch.Tensor:
    """`torch.tensor` and `torch.as_tensor`, which know nothing of devices that are written in Python."""
    if isinstance(data, PretendTensor):
        made = data if make is torch.as_tensor else data.detach().clone()
        return made.to(device=device or made.device, dtype=dtype or made.dtype)
    data = _mapped(lambda value: value.item() if isinstance(value, PretendTensor) else value, data)
    made = make(data, dtype=dtype, **kwargs)
    return made if device is None else made.to(device)


class _Backend:
    """The module `torch.pretend`."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return _DEVICE.is_active

    def device_count(self) -> int:
        return int(_DEVICE.is_active)

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Its random numbers are the CPU's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class _Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return _DEVICE.is_active

    def has_primary_context(self, device_index: int) -> bool:
        return _DEVICE.is_active

    def is_built(self) -> bool:
        return True


@functools.cache
def _is_composite(func: Any) -> bool:
    """Whether an operation is made of others, into which it comes apart unless there is an inference mode."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among arguments, and in their lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """A value, or every item of its lists and tuples, taken through a function."""
    if type(value) in (list, tuple):
        return type(value)(_mapped(function, item) for item in value)
    return function(value)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, PretendTensor) else value


def _check_devices(func: Any, args: Any, tensors: list[torch.Tensor], own: list[PretendTensor]) -> None:
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor)]
    if not own or not elsewhere or func in _COPIES:
        return
    if func in _INDEXING and isinstance(args[0], PretendTensor):
        elsewhere = [tensor for tensor in _tensors(args[2:]) if not isinstance(tensor, PretendTensor)]
    takes_numbers = (
        torch.Tag.pointwise in func.tags or func in _TAKES_NUMBERS or func._schema.name.startswith("aten::_foreach")
    )
    if not (takes_numbers and all(tensor.ndim == 0 for tensor in elsewhere)) and elsewhere:
        places = [(tuple(tensor.shape), str(tensor.device)) for tensor in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {places}.")


def _place() -> str:
    """The innermost frame of the package, else of whoever called torch."""
    frame, caller = sys._getframe(2), None
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PACKAGE):
            return f"{path.removeprefix(PACKAGE)}:{frame.f_lineno} {frame.f_code.co_name}"
        if caller is None and "/torch/" not in path and path != __file__:
            caller = f"{Path(path).name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return caller or "unknown"


_DEVICE = PretendDevice()


def register_pretend_device() -> None:
    """Tell PyTorch the device's name; before any gradient is computed, since the threads for it are made but once."""
    _setup_privateuseone_for_python_backend(NAME, _Backend(), _Hook())


def pretend_device() -> PretendDevice:
    """The process's pretend device."""
    return _DEVICE
