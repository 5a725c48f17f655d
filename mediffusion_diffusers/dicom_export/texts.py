"""Texts as the value representations of DICOM take them (PS3.5 6.2), and what every file here says of its maker."""

MANUFACTURER = "mediffusion-diffusers"
MODEL_NAME = "Mediffusion counterfactual explanation"
_LONG_STRING, _SHORT_TEXT = 64, 1024  # characters of LO and ST


def long_string(text: str) -> str:
    """A text of one line and at most 64 characters (LO), never empty; a backslash would separate values."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).replace("\\", "/").split())
    return _cut(line, _LONG_STRING) or "unnamed"


def short_text(text: str) -> str:
    """A text of at most 1,024 characters (ST)."""
    return _cut("".join(letter if letter.isprintable() else " " for letter in text), _SHORT_TEXT)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
