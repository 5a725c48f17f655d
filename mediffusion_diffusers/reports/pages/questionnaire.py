"""The questionnaire of a reader study: one page that works offline and from the keyboard, and keeps answers."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from ...reader_study.design import GRADES, QUESTION, QUESTION_END, ReaderStudy
from .explanations import SMOOTH_FROM
from .rendering import data_url
from .report import HtmlReport


class Questionnaire(HtmlReport):
    """The page that readers get: pictures and findings, and nothing of methods, cases or directions.

    Args:
        study: what is asked.
    """

    styles = (*HtmlReport.styles, "questionnaire.css")
    scripts = ("questionnaire.js",)

    def __init__(self, study: ReaderStudy):
        super().__init__("How visible is the finding?")
        originals: dict[bytes, int] = {}
        pictures: list[Image.Image] = []
        items = []
        for item in study.items:
            original = item.pair.original
            content = repr(original.size).encode() + original.tobytes()
            if content not in originals:
                originals[content] = len(pictures)
                pictures.append(original)
            items.append(
                {
                    "name": item.name,
                    "label": item.pair.case.label,
                    "original": originals[content],
                    "modified": data_url(item.pair.modified),
                }
            )
        content_of_page = {
            "name": study.name,
            "question": f"The finding {QUESTION}",
            "question_end": QUESTION_END,
            "grades": GRADES,
            "orders": study.orders,
            "items": items,
            "originals": [data_url(picture) for picture in pictures],
            "smooth_from": SMOOTH_FROM,
        }
        self._add("questionnaire", template="questionnaire.html", study=content_of_page)


def write_questionnaire(study: ReaderStudy, path: str | os.PathLike[str]) -> Path:
    """Write the page.

    Args:
        study: what is asked.
        path: the file; folders above it are made.
    """
    return Questionnaire(study).save(path)
