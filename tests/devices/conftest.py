import pytest
from support.pretend_device import pretend_device


@pytest.fixture
def pretend():
    """The pretend accelerator, for one test."""
    with pretend_device().active() as device:
        yield device
