"""The page is served to this machine alone, sends nothing to anybody, and leaves nothing behind."""

import builtins
import json
import os
import re
import signal
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

import pytest
import torch

from mediffusion_diffusers import app
from mediffusion_diffusers.commands import serve_app


def test_without_gradio_the_error_says_what_to_install(pipe, monkeypatch):
    imported = builtins.__import__

    def without_gradio(name, *rest, **named):
        if name.split(".")[0] == "gradio":
            raise ImportError("No module named 'gradio'")
        return imported(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_gradio)
    for name in [name for name in sys.modules if name.startswith("mediffusion_diffusers.app.layout")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r'pip install "mediffusion-diffusers\[app\]"'):
        app.build(pipe)


def test_the_layout_alone_needs_gradio():
    sources = {path.name: path.read_text(encoding="utf-8") for path in Path(app.__file__).parent.glob("*.py")}
    importing = {name for name, source in sources.items() if re.search(r"^(import|from) gradio\b", source, flags=re.M)}
    assert importing == {"layout.py"}


def test_arguments_are_checked_before_gradio_is_asked(pipe):
    with pytest.raises(ValueError, match="`num_parallel` must be a whole number"):
        app.build(pipe, num_parallel=0)


@pytest.fixture(scope="module")
def served(pipe):
    """Address and upload folder of a page, and its configuration."""
    pytest.importorskip("gradio")
    with app.serve(pipe, server_port=None) as address, urllib.request.urlopen(f"{address}config") as answer:
        yield address, Path(os.environ["GRADIO_TEMP_DIR"]), json.load(answer)


def test_the_page_listens_at_loopback(served):
    assert served[0].startswith("http://127.0.0.1:")


def test_nothing_is_sent_and_no_run_is_recorded(served):
    config = served[2]
    assert (config["analytics_enabled"], config["run_history"]) == (False, False)


def test_no_click_is_an_interface_for_programs(served):
    clicks = [click for click in served[2]["dependencies"] if click["backend_fn"]]
    assert clicks and {click["api_visibility"] for click in clicks} == {"private"}


def test_fonts_are_the_systems_own(served):
    with urllib.request.urlopen(f"{served[0]}theme.css") as answer:
        assert "@font-face" not in answer.read().decode()
    assert not any("font" in address for address in served[2]["stylesheets"])


def test_nothing_stays_behind(pipe):
    pytest.importorskip("gradio")
    before = os.environ.get("GRADIO_TEMP_DIR")
    with app.serve(pipe):
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists() and os.environ.get("GRADIO_TEMP_DIR") == before


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals reach one thread alone")
def test_a_signal_ends_the_page_and_clears_its_folder(tmp_path, pipe, monkeypatch, capsys):
    pytest.importorskip("gradio")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    app.launch(pipe)
    assert "The page is at http://127.0.0.1" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_command_computes_where_and_how_it_is_told(monkeypatch):
    served = []
    monkeypatch.setattr("mediffusion_diffusers.app.launch", lambda *given, **_: served.append(given))
    serve_app.main(["--model", "example", "--device", "cpu", "--dtype", "bfloat16"])
    ((pipe, examples),) = served
    assert pipe.dtype == torch.bfloat16 and len(examples) > 1
