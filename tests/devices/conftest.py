import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from support.pretend_device import pretend_device

from mediffusion_diffusers.data.phantom import prepare_phantoms
from mediffusion_diffusers.data.schema import load_info, load_prepared
from mediffusion_diffusers.data.splits import draw_labelled_split
from mediffusion_diffusers.device import switch_tf32


GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.fixture
def pretend():
    """The pretend accelerator, for one test."""
    with pretend_device().active() as device:
        yield device


@pytest.fixture(params=["pretend", pytest.param("cuda", marks=GPU)])
def device(request):
    """A device that is not the CPU: the pretend one, and a GPU where there is one."""
    if request.param == "pretend":
        with pretend_device().active():
            yield torch.device("pretend")
    else:
        allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        switch_tf32(False)
        yield torch.device("cuda")
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """accelerate keeps its state, and so its device, between runs of one process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """A prepared dataset of 24 training, 12 validation and 16 test phantoms of 16x16 pixels, half of them labelled."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    prepare_phantoms(folder, 24, 12, 16, image_size=16, show_progress=False)
    split = draw_labelled_split(load_prepared(folder, "train"), load_info(folder), 50, seed=2)
    split.save(folder / "labelled-50.json")
    return folder
