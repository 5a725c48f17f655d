"""The process of a test as a client of the emulator: no start of Python for what needs no fresh process.

`huggingface_hub`, and the libraries above it, read their settings at import. For the length of a `with` block, this
module puts others in their place, in every module that holds a copy.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants, hf_api


_LIBRARIES = ("huggingface_hub", "diffusers", "transformers")


@contextmanager
def client_settings(environment: dict[str, str]) -> Iterator[None]:
    """Follow an environment as a process would that starts with it.

    Args:
        environment: the whole one, as from `HubEmulator.environment`.
    """
    endpoint, home = environment["HF_ENDPOINT"], Path(environment["HF_HOME"])
    settings = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HUGGINGFACE_CO_RESOLVE_ENDPOINT": endpoint,
        "HF_URL_HOSTS": getattr(constants, "HF_URL_HOSTS", frozenset()) | {urlsplit(endpoint).hostname},
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": environment.get("HF_HUB_OFFLINE") == "1",
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, environment, clear=True))
        stack.enter_context(mock.patch.object(hf_api.api, "endpoint", endpoint))
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] in _LIBRARIES:
                for setting in settings.keys() & vars(module).keys():
                    stack.enter_context(mock.patch.object(module, setting, settings[setting]))
        huggingface_hub.close_session()  # connections of another environment
        stack.callback(huggingface_hub.close_session)
        yield
