import pytest
from hub_emulator import HubEmulator
from support.pretend_device import register_pretend_device


register_pretend_device()


@pytest.fixture
def hub():
    """An empty Hub on loopback whose tokens belong to `org`."""
    with HubEmulator() as emulator:
        yield emulator
