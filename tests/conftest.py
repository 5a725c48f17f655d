import signal
import threading

import pytest
from hub_emulator import HubEmulator
from support.fork_server import ForkServer
from support.pretend_device import register_pretend_device


register_pretend_device()


def pytest_configure():
    """Let Ctrl-C be heard, by the tests and what they start, also where a shell has started them in the background."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def fork_server():
    """Starts programs that are processes of their own, without the seconds of their imports."""
    with ForkServer() as server:
        yield server


@pytest.fixture
def hub():
    """An empty Hub on loopback whose tokens belong to `org`."""
    with HubEmulator() as emulator:
        yield emulator
