"""How the page is laid out, in gradio's components, and which click calls what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
from diffusers.utils import logging

from . import blocks
from .answers import OnProgress
from .desk import Desk
from .edit_request import recommended_scale


logger = logging.get_logger(__name__)

ABOUT = (
    "Pick an image. The page shows what the model sees in it, and what would have to change in the picture for the "
    "model to decide otherwise."
)
THEME = gr.themes.Base(
    primary_hue="blue",
    neutral_hue="slate",
    font=[gr.themes.Font(name) for name in ("system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")],
    font_mono=[gr.themes.Font(name) for name in ("ui-monospace", "Consolas", "monospace")],
)
_PUSHES = [
    ("As this model recommends", "checkpoint"),
    ("Until it is convinced", "target"),
    ("By hand", "by_hand"),
]
_CARES = [
    ("As this model recommends", "checkpoint"),
    ("Fast", "fast"),
    ("Best", "best"),
]
_PLACES = [
    ("As this model recommends", "checkpoint"),
    ("Where it changes most", "auto"),
    ("Everywhere", "everywhere"),
    ("In a box", "box"),
]
_SIDES = {"x": ("Left edge", 0.25), "y": ("Top edge", 0.25), "width": ("Width", 0.5), "height": ("Height", 0.5)}
_EMPTY = '<p class="mdf-empty">{}</p>'
_LATER = _EMPTY.format("Computed when this tab is opened.")
_STATE_SECONDS = 3600.0  # after which an image that nobody looks at is forgotten
_SWEPT_EVERY, _KEPT_FOR = 60, 60  # seconds: what a broken upload leaves behind
_SHOW_ANSWER = "() => { document.getElementById('answer').scrollIntoView({behavior: 'smooth', block: 'nearest'}); }"
_DRAW_BOX = """(place, x, y, width, height) => {
  const mark = document.querySelector(".mdf-box");
  if (!mark) return;
  const sides = { left: x, top: y, width: Math.min(width, 1 - x), height: Math.min(height, 1 - y) };
  mark.hidden = place !== "box";
  for (const [side, share] of Object.entries(sides)) mark.style[side] = 100 * share + "%";
}"""
# What somebody who uses the page can mend.
_EXPECTED = (ValueError, ImportError, OSError, MemoryError)


@dataclass(frozen=True)
class Parts:
    """What clicks read and write.

    Args:
        examples: buttons, one per example.
        upload: where a file is dropped.
        opened: the image that is looked at.
        fields: of an `EditRequest` by name, a box as four of them.
        explain: the button that asks.
        answer: the explanation.
        tabs: what to hold it against.
        tab: each tab by name.
        view: what each tab shows.
    """

    examples: gr.HTML
    upload: gr.File
    opened: gr.HTML
    fields: dict[str, Any]
    explain: gr.Button
    answer: gr.HTML
    tabs: gr.Tabs
    tab: dict[str, gr.Tab]
    view: dict[str, gr.HTML]


def lay_out(desk: Desk, title: str, num_parallel: int) -> gr.Blocks:
    """The page.

    Args:
        desk: what its clicks do.
        title: heading.
        num_parallel: explanations that are made at the same time; others wait.
    """
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(_SWEPT_EVERY, _KEPT_FOR)) as page:
        _html(blocks.head_block(title, ABOUT))
        with gr.Row():
            with gr.Column(scale=5, min_width=340):
                examples, upload, opened = _image_fields(desk)
                fields, explain = _question_fields(desk)
            with gr.Column(scale=8, min_width=340):
                answer = _html(_EMPTY.format("The explanation appears here."), elem_id="answer")
                tabs, tab, view = _tabs()
        _html(blocks.foot_block())
        parts = Parts(examples, upload, opened, fields, explain, answer, tabs, tab, view)
        _connect(page, desk, parts, num_parallel)
    return page


def _connect(page: gr.Blocks, desk: Desk, parts: Parts, num_parallel: int) -> None:
    """Which click calls what."""
    opened, answer, swept = (gr.State(time_to_live=_STATE_SECONDS) for _ in range(3))
    fields, view = parts.fields, parts.view

    def open_example(event: gr.EventData) -> Any:
        with in_words():
            return desk.open_example(int(event.index))

    def draw_box(event: gr.EventData) -> Any:
        return "box", *(round(float(getattr(event, side)), 2) for side in _SIDES)

    def open_file(path: str) -> Any:
        with in_words("This file cannot be used"):
            return desk.open_file(path)

    def explain(image: Any, *values: Any, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        with in_words():
            result, *shown = desk.explain(image, _request(list(fields), values), _reporter(progress))
        return result, None, *shown, _LATER, _LATER, _LATER, gr.Tabs(selected="controls")

    def sweep(result: Any, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        with in_words():
            return desk.sweep(result, _reporter(progress))

    def agree(result: Any, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        with in_words():
            return desk.agree(result, _reporter(progress))

    def download(result: Any, explained: Any) -> Any:
        with in_words():
            return desk.downloads(result, explained)

    listen: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": num_parallel}
    shown = [opened, parts.opened, fields["remove"], fields["add"]]
    answered = [answer, swept, parts.answer, *view.values(), parts.tabs]
    ask: dict[str, Any] = {"fn": explain, "inputs": [opened, *fields.values()], "outputs": answered, **listen}
    ask["show_progress_on"] = parts.answer
    box = [fields[name] for name in ("place", *_SIDES)]
    parts.opened.select(draw_box, None, box, show_progress="hidden", **listen)
    gr.on([parts.opened.change, *(field.change for field in box)], None, box, js=_DRAW_BOX)
    parts.examples.click(open_example, None, shown, **listen).success(**ask)
    given = parts.upload.upload(open_file, parts.upload, shown, show_progress="hidden", **listen)
    given.success(**ask)
    given.then(lambda: None, None, parts.upload, show_progress="hidden", **listen)
    parts.explain.click(None, js=_SHOW_ANSWER)
    parts.explain.click(**ask)
    parts.tab["sweep"].select(sweep, answer, [swept, view["sweep"]], **listen)
    parts.tab["agreement"].select(agree, answer, view["agreement"], **listen)
    parts.tab["download"].select(download, [answer, swept], view["download"], **listen)
    if desk.examples:
        page.load(lambda: desk.open_example(0), None, shown, **listen).success(**ask)


@contextmanager
def in_words(title: str = "This cannot be done") -> Iterator[None]:
    """Show an error in words on the page; a fault of the software goes to the log as well."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, _EXPECTED):
            logger.exception("A click on the page failed.")
            title, text = "A fault of the software", f"{type(error).__name__}: {text}"
        raise gr.Error(escape(text), duration=None, title=title, print_exception=False) from error


def _image_fields(desk: Desk) -> tuple[gr.HTML, gr.File, gr.HTML]:
    """Examples, the place to drop a file, and the image that is looked at."""
    buttons = blocks.example_buttons(desk.examples)
    picked = _html(buttons, elem_id="examples", visible=bool(desk.examples))
    _html(blocks.upload_hint())
    upload = gr.File(label="Picture or DICOM file", height=125, show_label=False, elem_id="upload")
    return picked, upload, _html("", elem_id="opened")


def _question_fields(desk: Desk) -> tuple[dict[str, Any], gr.Button]:
    """The fields of an `EditRequest` by name, a box as four of them, and the button that asks."""
    labels = desk.pipe.label_names
    settings = desk.pipe.resolve_settings()
    fields: dict[str, Any] = {
        "remove": gr.CheckboxGroup(labels, label="Remove", info="so that the model no longer sees", elem_id="remove"),
        "add": gr.CheckboxGroup(labels, label="Add", info="so that the model now sees", elem_id="add"),
    }
    explain = gr.Button("Explain", variant="primary", elem_id="explain")
    with gr.Accordion("How firmly, and where", open=False):
        push = fields["push"] = gr.Radio(_PUSHES, value="checkpoint", label="Push")
        target = fields["target_probability"] = gr.Slider(
            0.01, 0.5, 0.1, step=0.01, label="Probability of what is removed", visible=False,
            info="What is added goes to its complement.",
        )  # fmt: skip
        scale = max(recommended_scale(desk.pipe, {name: None}) for name in _directions(settings.guidance_scale)) or 1.0
        by_hand = [
            gr.Slider(0, 4 * scale, scale, label="Guidance scale", visible=False),
            gr.Slider(0.05, 1, settings.strength, step=0.05, label="Strength (way back into noise)", visible=False),
        ]
        fields["guidance_scale"], fields["strength"] = by_hand
        fields["care"] = gr.Radio(_CARES, value="checkpoint", label="Care", info="How many noises are averaged.")
        place = fields["place"] = gr.Radio(_PLACES, value="checkpoint", label="Where the picture may change")
        with gr.Row(visible=False) as box:
            for side, (label, value) in _SIDES.items():
                fields[side] = gr.Slider(0, 1, value, step=0.01, label=label, min_width=120)
        fields["hold_others"] = gr.Checkbox(False, label="Hold the other findings where they are")
    _show_when(push, [([target], "target"), (by_hand, "by_hand")])
    _show_when(place, [([box], "box")])
    return fields, explain


def _tabs() -> tuple[gr.Tabs, dict[str, gr.Tab], dict[str, gr.HTML]]:
    """What to hold an answer against: the tabs, each by name, and what each shows."""
    headings = {"controls": "Controls", "sweep": "Severity", "agreement": "Agreement", "download": "Download"}
    tab, view = {}, {}
    with gr.Tabs() as tabs:
        for name, heading in headings.items():
            with gr.Tab(heading, id=name) as tab[name]:
                view[name] = _html(_EMPTY.format("Explain an image first."), elem_id=name)
    return tabs, tab, view


def _html(value: str, **options: Any) -> gr.HTML:
    """HTML of ours in a style of ours."""
    return gr.HTML(value, js_on_load=blocks.SCRIPT, apply_default_css=False, **options)


def _show_when(field: gr.Radio, parts: list[tuple[list[Any], str]]) -> None:
    """Show components while a field has a value, in the browser or not at all."""
    outputs = [component for components, _ in parts for component in components]
    wanted = [value for components, value in parts for _ in components]

    def choose(value: str) -> Any:
        updates = [gr.update(visible=value == one) for one in wanted]
        return updates if len(updates) > 1 else updates[0]

    field.change(choose, field, outputs, api_visibility="private", show_progress="hidden")


def _request(names: list[str], values: tuple[Any, ...]) -> dict[str, Any]:
    """Fields of an `EditRequest` from those of the page."""
    fields = dict(zip(names, values, strict=True))
    box = {side: fields.pop(side) for side in _SIDES}
    return {**fields, "remove": tuple(fields["remove"]), "add": tuple(fields["add"]), "box": box}


def _reporter(progress: Callable[..., Any]) -> OnProgress:
    return lambda share, doing: progress(share, desc=doing)


def _directions(guidance_scale: Any) -> list[str]:
    """Directions that the checkpoint has a scale for."""
    return list(guidance_scale) if isinstance(guidance_scale, dict) else ["away"]
