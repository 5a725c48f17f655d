"""Building the page and serving it, so that nothing of an image stays behind on the disk."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .. import examples as examples_of_package
from ..options import Range, check_number
from ..pipelines import MediffusionCounterfactualPipeline
from ..stop_request import StopRequest
from .desk import Desk, Example


if TYPE_CHECKING:
    import gradio

Model = MediffusionCounterfactualPipeline | str | os.PathLike[str] | None

TITLE = "See what a model looks for"
LOOPBACK = "127.0.0.1"
_MAX_FILE_SIZE = "512mb"
# Read by gradio when it is imported, and when a page is launched: nothing is sent to it or kept in browsers.
_QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}


def build(
    pipe: Model = None,
    examples: Sequence[Example] | None = None,
    title: str = TITLE,
    num_parallel: int = 2,
) -> gradio.Blocks:
    """The page as gradio's `Blocks`, to launch or to mount elsewhere; see `launch`.

    Args:
        pipe: the pipeline, or its folder or Hub repository; by default the checkpoint that comes with the package.
        examples: images to begin with; everybody who opens the page sees them. By default those that come with the
            package, for its checkpoint, and none for others.
        title: heading.
        num_parallel: explanations that are made at the same time, at least 1; others wait.

    Raises:
        ValueError: for examples that are no images, or a checkpoint that cannot be used.
        ImportError: if gradio is not installed.
    """
    check_number("num_parallel", num_parallel, Range(at_least=1), whole=True)
    os.environ.update(_QUIET)
    try:
        from .layout import lay_out
    except ImportError as error:
        raise ImportError(f'The page needs gradio ({error}): pip install "mediffusion-diffusers[app]".') from error
    if examples is None:
        examples = boxed_examples() if pipe is None else ()
    page = lay_out(Desk(_loaded(pipe), examples), title, num_parallel)
    page.queue(default_concurrency_limit=num_parallel)
    return page


def launch(
    pipe: Model = None,
    examples: Sequence[Example] | None = None,
    title: str = TITLE,
    num_parallel: int = 2,
    server_name: str = LOOPBACK,
    server_port: int | None = None,
    **options: Any,
) -> None:
    """Serve the page until SIGTERM or Ctrl-C.

    It is served to this machine alone unless `server_name` says otherwise, sends nothing to anybody, and loads nothing
    from elsewhere. Images live in memory, up to an hour after they were last used; an upload is deleted as soon as it
    is read. Who else may open the page may use it: it knows no passwords unless gradio's `auth` is given.

    Args:
        pipe: as for `build`.
        examples: as for `build`.
        title: as for `build`.
        num_parallel: as for `build`.
        server_name: address to listen at; `"0.0.0.0"` is every address of this machine.
        server_port: by default the first free one from 7860.
        options: further ones of gradio's `Blocks.launch`.

    Raises:
        ValueError: as for `build`.
        ImportError: as for `build`.
        OSError: if the port is taken.
    """
    stop = StopRequest()
    with stop.listening(), serve(pipe, examples, title, num_parallel, server_name, server_port, **options) as address:
        print(f"The page is at {address} (Ctrl-C ends it).")
        while stop.signal_number is None:
            time.sleep(0.2)


@contextmanager
def serve(
    pipe: Model = None,
    examples: Sequence[Example] | None = None,
    title: str = TITLE,
    num_parallel: int = 2,
    server_name: str = LOOPBACK,
    server_port: int | None = None,
    **options: Any,
) -> Iterator[str]:
    """Serve the page inside the block; see `launch`.

    Yields:
        Its address.
    """
    with tempfile.TemporaryDirectory(prefix="mediffusion-app-") as folder, _environment(GRADIO_TEMP_DIR=folder):
        page = build(pipe, examples, title, num_parallel)
        from .layout import THEME

        quiet = {"prevent_thread_lock": True, "quiet": True, "share": False, "show_error": False}
        plain = {"ssr_mode": False, "mcp_server": False, "pwa": False, "enable_monitoring": False}
        private = {"run_history": False, "footer_links": [], "max_file_size": _MAX_FILE_SIZE, "theme": THEME}
        where = {"server_name": server_name, "server_port": server_port}
        try:
            _, address, _ = page.launch(**{**quiet, **plain, **private, **where, **options})
            yield address
        finally:
            page.close(verbose=False)


def boxed_examples() -> list[Example]:
    """The phantoms that come with the package, called by what they show."""
    return [Example(" + ".join(one.labels) or "No finding", one.image) for one in examples_of_package.images()]


def _loaded(pipe: Model) -> MediffusionCounterfactualPipeline:
    """The pipeline; one that is loaded here shows its progress on the page alone."""
    if isinstance(pipe, MediffusionCounterfactualPipeline):
        return pipe
    source = examples_of_package.checkpoint() if pipe is None else pipe
    loaded = MediffusionCounterfactualPipeline.from_pretrained(source)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables inside the block."""
    before: Mapping[str, str | None] = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
