import pytest
from hub_emulator import HubEmulator


@pytest.fixture
def hub():
    """An empty Hub on loopback whose tokens belong to `org`."""
    with HubEmulator() as emulator:
        yield emulator
