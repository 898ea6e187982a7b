"""From a YAML file and `key.sub=value` overrides to a checked Config.

A file that names a path names it relative to itself; the command line names it relative to the working directory.
Everything that is wrong is reported together, each with its place, its key, what was expected and what came.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from multigrid.config.sections import (
    MODEL_FILE_KEY,
    MODEL_FILE_RULE,
    Config,
    ShapesConfig,
    is_section,
    path_rules,
    schema,
)
from multigrid.config.values import PathRule, Says
from multigrid.config.words import nearest, says
from multigrid.config.yaml_text import Document, Origin, Problem, dotted, shown, value_at
from multigrid.errors import InputError


class ConfigLoader:
    """Lays default paths, model file, config file and overrides on one another, and checks the result whole."""

    def __init__(self) -> None:
        here = Origin(os.getcwd())
        self.problems: list[Problem] = []
        self.values: dict[str, Any] = {}
        self.origins: dict[tuple, Origin] = {}
        # The one default that is a path: the working directory makes it absolute, as it would an override.
        folder = ("data", "shapes", "folder")
        self._lay(folder, ShapesConfig().folder, {folder: here})

    @classmethod
    def load(cls, path: str | os.PathLike, overrides: Iterable[str] = ()) -> Config:
        """The config of a YAML file with `key.sub=value` overrides.

        Args:
            path: a YAML file.
            overrides: `key.sub=value` each, the value in YAML; a later one wins over an earlier one.

        Returns:
            The checked, frozen Config; its paths are absolute.

        Raises:
            InputError: every problem of file, model file and overrides: one on one line, several on a line each after
                a line that counts them.
        """
        loader = cls()
        settings = [setting for text in overrides if (setting := loader._read_override(text)) is not None]
        document = loader._read_file(os.fspath(path), "the sections of a config")
        if document is not None:
            loader._lay_all(document, settings)
            config = loader._check()
        if loader.problems:
            raise InputError(loader._summary())
        return config

    def _lay_all(self, document: Document, settings: list[Document]) -> None:
        """Model file under config file under overrides."""
        named = [(document.value.pop(MODEL_FILE_KEY, None), document.origins.get((MODEL_FILE_KEY,)))]
        named += [(setting.value, setting.origin) for setting in settings if setting.prefix == (MODEL_FILE_KEY,)]
        model_file = self._resolve((MODEL_FILE_KEY,), *named[-1], MODEL_FILE_RULE)
        if model_file is not None:
            model = self._read_file(model_file, "the keys of `model`", prefix=("model",))
            if model is not None:
                self._lay(("model",), model.value, model.origins)
        self._lay((), document.value, document.origins)
        for setting in settings:
            if setting.prefix != (MODEL_FILE_KEY,) and not self._is_inside_a_wrong_section(setting.prefix):
                self._lay(setting.prefix, setting.value, setting.origins)

    def _is_inside_a_wrong_section(self, path: tuple) -> bool:
        """Whether there is, say, `training: 5` under an override of `training.epochs`: that stays, to be reported."""
        above = [path[:length] for length in range(1, len(path))]
        return any(
            is_section(schema(part)[1]) and part in self.origins and not isinstance(value_at(self.values, part), dict)
            for part in above
            if schema(part)[0] == part
        )

    def _read_file(self, file: str, contents: str, prefix: tuple = ()) -> Document | None:
        """The mapping in a YAML file; None after a problem that leaves nothing to go on with."""
        origin = Origin(os.path.dirname(os.path.abspath(file)), file)
        try:
            with open(file, "rb") as stream:
                raw = stream.read()
            text = raw.decode("utf-8")
        except OSError as error:
            return self._give_up(origin, f"expected a YAML file, received none ({error.strerror})")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            return self._give_up(replace(origin, line=line), "expected UTF-8 text, received other bytes")
        document = Document(text, origin, self.problems, prefix)
        if not document.readable:
            return None
        if not isinstance(document.value, dict):
            received = "an empty file" if document.value is None else shown(document.value)
            return self._give_up(replace(origin, line=1), f"expected a mapping of {contents}, received {received}")
        return document

    def _give_up(self, origin: Origin, text: str) -> None:
        self.problems.append(Problem(origin, text))

    def _read_override(self, text: str) -> Document | None:
        origin = Origin(os.getcwd())
        key, equals, value = text.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            return self._give_up(origin, f"expected key.sub=value, received {shown(text)}")
        document = Document(value, origin, self.problems, path)
        return document if document.readable else None

    def _lay(self, path: tuple, value: Any, origins: dict[tuple, Origin]) -> None:
        """Puts the value over what is there: mappings key by key, anything else whole."""
        if isinstance(value, dict) and isinstance(value_at(self.values, path), dict):
            for key, item in value.items():
                self._lay((*path, key), item, origins)
            return
        holder, origin = self.values, origins[path]
        for length, part in enumerate(path[:-1], start=1):
            if not isinstance(holder.get(part), dict):
                holder[part] = {}
                self.origins[path[:length]] = origin
            holder = holder[part]
        holder[path[-1]] = value
        depth = len(path)
        self.origins = {at: known for at, known in self.origins.items() if at[:depth] != path}
        self.origins.update({at: known for at, known in origins.items() if at[:depth] == path})

    def _check(self) -> Config | None:
        """The Config of the values; None, and problems, where they do not make one."""
        for path, rule in path_rules():
            value = value_at(self.values, path)
            if isinstance(value, str) and value:
                value_at(self.values, path[:-1])[path[-1]] = self._resolve(path, value, self.origins[path], rule)
        try:
            return Config.model_validate(self.values)
        except ValidationError as error:
            found = [self._explain(each["type"], each["loc"]) for each in error.errors(include_url=False)]
        self.problems += dict.fromkeys(found)  # the alternatives of one type complain one by one
        return None

    def _resolve(self, path: tuple, value: Any, origin: Origin | None, rule: PathRule) -> str | None:
        """The absolute path; None, and a problem, if it must be there and is not."""
        if value is None or value == rule.word:
            return value
        if not isinstance(value, str) or not value:
            self.problems.append(Problem(origin, f"{dotted(path)}: expected {rule.text}, received {shown(value)}"))
            return None
        full = os.path.abspath(os.path.join(origin.folder, os.path.expanduser(value)))
        there = {None: True, "file": os.path.isfile(full), "anything": os.path.exists(full)}[rule.must_be]
        if not there:
            text = f"{dotted(path)}: expected {rule.text}, received {shown(value, 1000)} (looked for {full})"
            self.problems.append(Problem(origin, text))
        return full if there else None

    def _explain(self, kind: str, location: tuple) -> Problem:
        """One complaint of pydantic's in our words."""
        known, found = schema(location)
        if kind == "extra_forbidden" and is_section(found):
            path = self._written_key(location)
            text = f"{dotted(path)}: unknown key; the nearest known key is {nearest(path)}"
            return Problem(self.origins[path], text)
        taken = Says("a mapping of keys") if is_section(found) else says(found)
        path = location[: len(known)]
        item = location[: len(known) + 1]
        origin = self.origins[item if item in self.origins else path]
        if taken.item and item != path:
            path, taken = item, Says(taken.item)
        return Problem(origin, f"{dotted(path)}: expected {taken.text}, received {shown(value_at(self.values, path))}")

    def _written_key(self, location: tuple) -> tuple:
        """The unknown key as it was written: `a.b=1` on the command line made an `a` that nobody wrote."""
        if self.origins[location].file is None:
            return max((path for path in self.origins if path[: len(location)] == location), key=len)
        return location

    def _summary(self) -> str:
        lines = [str(problem) for problem in sorted(self.problems, key=lambda problem: problem.origin.order)]
        return lines[0] if len(lines) == 1 else "\n".join([f"{len(lines)} problems in the configuration:", *lines])
