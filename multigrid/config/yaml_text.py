"""YAML to plain values that remember where they were written.

Numbers follow YAML 1.2: `1e-4` is a number, `010` is ten.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import yaml


class YamlLoader(yaml.SafeLoader):
    """Plain scalars by the rules of YAML 1.2, except that yes, no, on and off stay booleans."""

    yaml_implicit_resolvers: dict = {}


class YamlDumper(yaml.SafeDumper):
    """Quotes what `YamlLoader` would not read back as a string; writes lists of plain values on one line."""

    yaml_implicit_resolvers = YamlLoader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _integer(loader: YamlLoader, node: yaml.ScalarNode) -> int:
    text = node.value.lstrip("+-").lower()
    size = int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
    return -size if node.value.startswith("-") else size


_TAG = "tag:yaml.org,2002:"
_RESOLVERS = (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
)
for _name, _pattern, _first in _RESOLVERS:
    YamlLoader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})\\Z"), list(_first))
YamlLoader.add_constructor(_TAG + "int", _integer)


def plain(value: Any) -> Any:
    """The same values in lists and dicts."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Origin:
    """Where a value was written, and the folder that its relative paths start from."""

    folder: str
    file: str | None = None  # None: on the command line
    line: int | None = None

    @property
    def order(self) -> tuple:
        return self.file is None, self.file or "", self.line or 0

    def __str__(self) -> str:
        if self.file is None:
            return "command line"
        return self.file if self.line is None else f"{self.file}, line {self.line}"


@dataclass(frozen=True)
class Problem:
    origin: Origin
    text: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.text}"


@dataclass
class Document:
    """One YAML text as plain values, with the origin of every key and list item.

    What is wrong with it is added to `problems`; `readable` is False if it is no YAML at all.
    """

    text: str
    origin: Origin
    problems: list[Problem]
    prefix: tuple = ()
    value: Any = None
    origins: dict[tuple, Origin] = field(default_factory=dict)
    readable: bool = True

    def __post_init__(self) -> None:
        try:
            self._loader = YamlLoader(self.text)
            node = self._loader.get_single_node()
            self.origins[self.prefix] = self.origin
            self.value = None if node is None else self._build(node, self.prefix, ())
        except yaml.YAMLError as error:
            self.readable = False
            line, reason = _yaml_reason(error, self.text)
            path = () if self.origin.file else self.prefix
            self._report(line, path, f"expected YAML, received text that is not ({reason})")

    def _report(self, line: int, path: tuple, text: str) -> None:
        self.problems.append(Problem(self._at(line), f"{dotted(path)}: {text}" if path else text))

    def _at(self, line: int) -> Origin:
        return self.origin if self.origin.file is None else replace(self.origin, line=line)

    def _build(self, node: yaml.Node, path: tuple, ancestors: tuple) -> Any:
        line = node.start_mark.line + 1
        if any(node is ancestor for ancestor in ancestors):
            self._report(line, path, "expected a value, received an alias of what it stands in")
        elif isinstance(node, yaml.ScalarNode):
            return self._scalar(node, line, path)
        elif node.tag == _TAG + "map":
            return self._mapping(node, path, (*ancestors, node))
        elif node.tag == _TAG + "seq":
            items = list(enumerate(node.value))
            self.origins.update({(*path, i): self._at(item.start_mark.line + 1) for i, item in items})
            return [self._build(item, (*path, i), (*ancestors, node)) for i, item in items]
        else:
            self._report(line, path, f"expected plain YAML, received the tag {shown(node.tag)}")
        return None

    def _scalar(self, node: yaml.ScalarNode, line: int, path: tuple) -> Any:
        try:
            if node.tag in {_TAG + kind for kind in ("null", "bool", "int", "float", "str")}:
                return self._loader.construct_object(node)
        except (ValueError, KeyError):  # as in `!!int word`
            pass
        self._report(line, path, f"expected plain YAML, received {shown(node.value)} with the tag {shown(node.tag)}")
        return None

    def _mapping(self, node: yaml.MappingNode, path: tuple, ancestors: tuple) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, item in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._report(line, path, "expected words as keys, received a list or a mapping")
                continue
            # The text as it is written: the key `on` is a word, whatever the value `on` is.
            key = key_node.value
            if key in lines:
                self._report(line, (*path, key), f"expected the key once, received twice (line {lines[key]})")
            lines.setdefault(key, line)
            self.origins[(*path, key)] = self._at(line)
            values[key] = self._build(item, (*path, key), ancestors)
        return values


def _yaml_reason(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """Line and reason of PyYAML's complaint."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return mark.line + 1, " ".join(filter(None, [error.context, error.problem]))
    return text.count("\n", 0, error.position) + 1, error.reason  # a character that YAML does not allow


def dotted(path: Iterable[Any]) -> str:
    """A path of keys as people write it: `augmentation.steps[1].p`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def value_at(values: Any, path: Iterable[Any]) -> Any:
    """The value at the path, or None."""
    for part in path:
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            return None
    return values


def shown(value: Any, limit: int = 80) -> str:
    """The value on one line, much as YAML would write it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"
