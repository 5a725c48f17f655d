"""The part of a model card that lists every option of a counterfactual with its default for this checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from markupsafe import Markup

from ..pipelines.counterfactual.settings import CounterfactualSettings
from .markdown import code


def defaults_context(guidance_defaults: Mapping[str, Any] | None, scaling_factor: float) -> dict[str, Any]:
    """What `counterfactual_defaults.md` takes.

    Args:
        guidance_defaults: what the checkpoint's config stores.
        scaling_factor: the autoencoder's.
    """
    stored, defaults = dict(guidance_defaults or {}), CounterfactualSettings()
    options = []
    for entry in fields(CounterfactualSettings):
        is_stored = entry.name in stored
        value = stored.pop(entry.name, getattr(defaults, entry.name))
        options.append(_option(entry.name, value, is_stored, _cell(entry.metadata["help"])))
    options += [_option(name, value, True, Markup("not known to this version")) for name, value in stored.items()]
    return {
        "is_calibrated": bool(guidance_defaults),
        "scaling_factor": f"{scaling_factor:.5g}",
        "options": options,
    }


def _option(name: str, value: Any, is_stored: bool, help: Markup) -> dict[str, Any]:
    origin = "checkpoint" if is_stored else "pipeline"
    return {"name": name, "value": code("none" if value is None else value), "origin": origin, "help": help}


def _cell(help: str) -> Markup:
    """An option's help, which is our own Markdown, as a table's cell: references as plain names, bars escaped."""
    plain = re.sub(r"\[`~?(?:\w+\.)*(\w+)`\]", r"`\1`", help)
    return Markup(plain.replace("|", "\\|"))
