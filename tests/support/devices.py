"""The same call on two devices."""

import numpy as np
import torch


def same_on(device, call, **arguments):
    """Make a call on the CPU and on a device, and compare."""
    assert_same(call(device, **arguments), call(torch.device("cpu"), **arguments))


def assert_same(actual, expected, atol=1e-4, rtol=1e-4):
    """Compare results of any structure, whatever device their tensors are on."""
    if hasattr(expected, "keys"):
        assert actual.keys() == expected.keys()
        for name in expected.keys():  # noqa: SIM118 - an output object iterates over its values
            assert_same(actual[name], expected[name], atol, rtol)
    elif isinstance(expected, (torch.Tensor, np.ndarray)):
        one, other = (torch.as_tensor(value).cpu() for value in (actual, expected))
        torch.testing.assert_close(one, other, atol=atol, rtol=rtol, equal_nan=True)
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other, atol, rtol)
    elif isinstance(expected, float):
        assert np.isclose(actual, expected, atol=atol, rtol=rtol, equal_nan=True)
    elif hasattr(expected, "size") and hasattr(expected, "getdata"):  # pictures: rounding may turn a grey level
        assert np.abs(np.asarray(actual, dtype=int) - np.asarray(expected, dtype=int)).max() <= 1
    elif hasattr(expected, "__dict__") and not callable(expected):
        assert_same(vars(actual), vars(expected), atol, rtol)
    else:
        assert actual == expected
