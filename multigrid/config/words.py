"""The config in words: what a field takes, the key that an unknown one may mean, and the reference of all keys."""

import difflib
from typing import Any

from multigrid.config.sections import (
    MODEL_FILE_DESCRIPTION,
    MODEL_FILE_KEY,
    MODEL_FILE_RULE,
    fields,
    is_section,
    schema,
)
from multigrid.config.values import Says
from multigrid.config.yaml_text import plain, shown


def says(info: Any) -> Says:
    """What a field takes, in words."""
    for mark in info.metadata:
        if isinstance(mark, Says):
            return mark
    limits = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{word} {getattr(mark, name):g}"
        for mark in info.metadata
        for name, word in limits.items()
        if getattr(mark, name, None) is not None
    ]
    first, *others = _kinds(info.annotation)
    if bounds:
        first = f"{first} {' and '.join(bounds)}" + ("," if others else "")
    return Says(_alternatives([first, *others]))


def _kinds(annotation: Any) -> list[str]:
    """The kinds of value that a type takes, in words."""
    simple = {bool: "true or false", int: "an integer", float: "a number", type(None): "null"}
    if annotation in simple:
        return [simple[annotation]]
    if getattr(annotation, "__metadata__", None):
        return _kinds(annotation.__origin__)
    arguments = annotation.__args__
    if all(isinstance(word, str) for word in arguments):
        return [shown(word) for word in arguments]
    return [kind for argument in arguments for kind in _kinds(argument)]


def _alternatives(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def nearest(path: tuple[str, ...]) -> str:
    """The known key that an unknown one most likely means: beside it, else of that name elsewhere, else in spelling."""
    known, section = schema(path)
    beside = list(section.model_fields) if is_section(section) else []
    everywhere = [keys for keys, _ in fields()]
    if not known:
        beside.append(MODEL_FILE_KEY)
    close = difflib.get_close_matches(path[len(known)], beside, n=1)
    if close:
        mended = (*known, close[0], *path[len(known) + 1 :])
        return ".".join(mended) if schema(mended)[0] == mended or len(mended) == 1 else nearest(mended)
    close = difflib.get_close_matches(path[-1], [keys[-1] for keys in everywhere], n=1, cutoff=0.8)
    if close:
        return next(".".join(keys) for keys in everywhere if keys[-1] == close[0])
    return difflib.get_close_matches(".".join(path), [".".join(keys) for keys in everywhere], n=1, cutoff=0.0)[0]


def describe() -> str:
    """The reference of all keys: a Markdown table a section."""
    tables: dict[tuple[str, ...], list[str]] = {}
    for path, info in fields():
        row = (".".join(path), says(info).text, shown(plain(info.get_default(call_default_factory=True)), 10_000))
        tables.setdefault(path[:-1], []).append(_row(f"`{row[0]}`", row[1], f"`{row[2]}`", info.description))
    tables[()].append(_row(f"`{MODEL_FILE_KEY}`", MODEL_FILE_RULE.text, "`null`", MODEL_FILE_DESCRIPTION))
    parts = []
    for path, rows in tables.items():
        title = f"`{'.'.join(path)}`: {schema(path)[1].__doc__}" if path else "Top level"
        head = [_row("key", "takes", "default", "meaning"), _row(*["---"] * 4)]
        parts.append("\n".join([f"## {title}", "", *head, *rows]))
    return "\n\n".join(parts) + "\n"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
