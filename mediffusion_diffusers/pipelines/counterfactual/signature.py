"""The settings as keyword arguments: a call's signature and docstring follow from `CounterfactualOptions`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_type_hints

from ...counterfactual_options import CounterfactualOptions, describe_options, stored_options


def takes_settings(**first_after: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a method that takes `**options` every setting as an argument that `inspect` and `help` know.

    An option that a checkpoint may store is `None` by default. In the docstring `{options}` becomes the description of
    all options, `{stored}` and `{defaults}` their names and values where a checkpoint may store them.

    Args:
        first_after: where the settings stand among the method's own arguments: by the name of an argument, the setting
            that follows it, and all after that one up to the next named here.
    """

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        signature = _merge(inspect.signature(method), first_after)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            return method(**signature.bind(*args, **kwargs).arguments)

        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__doc__ = (method.__doc__ or "").format(options=describe_options(" " * 12), **_defaults())
        return call

    return decorate


def _merge(own: inspect.Signature, first_after: dict[str, str]) -> inspect.Signature:
    """The method's own parameters with those of the settings between them."""
    hints = get_type_hints(CounterfactualOptions)
    runs: dict[str, list[inspect.Parameter]] = {}
    starts = {setting: argument for argument, setting in first_after.items()}
    run: list[inspect.Parameter] = []
    for entry in fields(CounterfactualOptions):
        if entry.name in starts:
            run = runs[starts[entry.name]] = []
        default = None if entry.name in stored_options() else entry.default
        kind, hint = inspect.Parameter.POSITIONAL_OR_KEYWORD, hints[entry.name]
        run.append(
            inspect.Parameter(
                entry.name, kind, default=default, annotation=hint if default is not None else hint | None
            )
        )
    parameters = []
    for parameter in own.parameters.values():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            parameters += [parameter, *runs.get(parameter.name, [])]
    return own.replace(parameters=parameters)


def _defaults() -> dict[str, str]:
    """The options that a checkpoint may store, in words."""
    default = {entry.name: entry.default for entry in fields(CounterfactualOptions)}
    return {
        "stored": ", ".join(f"`{name}`" for name in stored_options()),
        "defaults": ", ".join(f"{name} {default[name]!r}" for name in stored_options()),
    }
