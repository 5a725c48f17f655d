"""Which device and precision a command gets, and what it is told where there is none."""

import pytest
import torch

from mediffusion_diffusers.device import memory_format_for, pick_device, pick_dtype, switch_tf32
from mediffusion_diffusers.device_options import DeviceOptions
from mediffusion_diffusers.option_parser import OptionParser


CPU = torch.device("cpu")


class TestPickDevice:
    def test_by_name(self):
        assert pick_device("cpu") == CPU

    @pytest.mark.parametrize("kind", ["cuda", "xpu"])
    def test_an_accelerator_comes_first(self, kind, monkeypatch):
        monkeypatch.setattr(getattr(torch, kind), "is_available", lambda: True)
        monkeypatch.setattr(getattr(torch, kind), "device_count", lambda: 2)
        assert pick_device() == torch.device(kind)
        assert pick_device(f"{kind}:1") == torch.device(kind, 1)
        with pytest.raises(ValueError, match=f"`device` .*cpu, {kind}:0, {kind}:1, but got '{kind}:2'"):
            pick_device(f"{kind}:2")

    def test_else_the_cpu(self, monkeypatch):
        for module in (torch.cuda, torch.xpu, torch.backends.mps):
            monkeypatch.setattr(module, "is_available", lambda: False)
        assert pick_device() == CPU

    @pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "meta", "cpu:1", "cuda:-1"])
    def test_others_are_refused(self, name):
        with pytest.raises(ValueError, match="`device` must be one that this machine has, cpu"):
            pick_device(name)


class TestPickDtype:
    @pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
    def test_by_name(self, name):
        assert pick_dtype(name, CPU) == getattr(torch, name)

    def test_float32_by_default(self):
        assert pick_dtype(None, CPU) == torch.float32

    def test_others_are_refused(self):
        with pytest.raises(ValueError, match="`dtype` must be one of float32, bfloat16, float16, but got 'int8'"):
            pick_dtype("int8", CPU)

    def test_one_that_the_device_does_not_have(self, monkeypatch):
        def fail(*_, **__):
            raise RuntimeError("no kernel for Half")

        monkeypatch.setattr(torch, "ones", fail)
        with pytest.raises(
            ValueError, match="`dtype` 'float16' does not work on the device 'cpu': no kernel for Half"
        ):
            pick_dtype("float16", CPU)


@pytest.fixture
def tf32():
    """TF32's switches, put back afterwards."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    yield lambda: [place.allow_tf32 for place in places]
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


@pytest.mark.parametrize("allowed", [True, False])
def test_one_switch_for_products_and_convolutions(allowed, tf32):
    switch_tf32(allowed)
    assert tf32() == [allowed, allowed]


def test_options_of_a_command(tf32):
    parser = OptionParser(DeviceOptions)
    (options,) = parser.parse(["--device", "cpu", "--dtype", "bfloat16", "--allow_tf32"])
    assert options.choose() == (CPU, torch.bfloat16) and tf32() == [True, True]
    (options,) = parser.parse([])
    assert options == DeviceOptions(device=None, dtype="float32", allow_tf32=False)


def test_channels_last_on_the_cpu_alone():
    assert memory_format_for(CPU) == torch.channels_last
    assert memory_format_for(torch.device("cuda")) == torch.contiguous_format
