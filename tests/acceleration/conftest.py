"""Which kernel small layers take, and what the package says about it."""

import pytest
from diffusers.utils import logging

from mediffusion_diffusers.acceleration import kernels, packing


@pytest.fixture(autouse=True)
def prefer(monkeypatch):
    """Small layers would stay eager; here they take the kernel that the returned function names."""

    def prefer(kernel):
        costs = {"eager": 1e15, "direct": 1e14, "winograd": 1e14, kernel: 0.0}
        monkeypatch.setattr(kernels, "CALL_COSTS", costs)

    prefer("direct")
    return prefer


@pytest.fixture
def messages(caplog):
    """A function that returns the module's log messages of a level."""
    logger = logging.get_logger(packing.__name__)
    level = logger.level
    logging.enable_propagation()
    logger.setLevel("INFO")
    yield lambda level: [record.getMessage() for record in caplog.records if record.levelname == level]
    logger.setLevel(level)
    logging.disable_propagation()
