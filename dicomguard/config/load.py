"""YAML and environment -> Config. What is wrong is named with file and line, and with what to write instead."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from dicomguard.config.sections import Config
from dicomguard.errors import ConfigError

_PREFIX = "DICOMGUARD_"
# Variables that speak to the tests or to the command line, not of the configuration.
_NOT_CONFIG = frozenset(
    {
        *("DICOMGUARD_CONFIG", "DICOMGUARD_TEST_DATA", "DICOMGUARD_TEST_POSTGRES"),
        *("DICOMGUARD_KILLS", "DICOMGUARD_KILL_SEED", "DICOMGUARD_FUZZ", "DICOMGUARD_FUZZ_SEED"),
    }
)

_Path = tuple[str | int, ...]


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Read a configuration file. Raises ConfigError naming every mistake with its line."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The configuration {path} cannot be read: {error}.", advice="Give the right path with -c."
        ) from error
    return parse(text, source=str(path), folder=path.resolve().parent, environ=environ)


def parse(text: str, *, source: str, folder: Path, environ: Mapping[str, str]) -> Config:
    """Read a configuration from text; relative paths are relative to `folder`. Raises ConfigError."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}{_place(error)} is no valid YAML: {_problem(error)}.") from error
    except RecursionError as error:
        raise ConfigError(f"{source} is nested too deeply.", advice="No key needs more than five levels.") from error
    lines: dict[_Path, int] = {}
    data = {} if node is None else _value(node, (), lines, source, ())
    if not isinstance(data, dict):
        raise ConfigError(f"{source}, line 1: the file must hold keys such as 'node:' and 'peers:'.")
    overridden = _override(data, environ)
    config, details = _validate(data)
    if as_text := _values_as_text(details, overridden, environ):
        for steps, name in as_text.items():
            _set(data, steps, environ[name], name)
        config, details = _validate(data)
    if config is None:
        details = sorted(details, key=lambda detail: _line(_path(detail), lines))
        raise ConfigError("\n".join(_explain(detail, lines, source, overridden) for detail in details))
    return _resolve(config, folder)


def _validate(data: dict[str, Any]) -> tuple[Config | None, list[Any]]:
    """The configuration, or else everything that is wrong with it."""
    try:
        return Config.model_validate(data), []
    except ValidationError as error:
        return None, list(error.errors())


def _values_as_text(
    details: list[Any], overridden: Mapping[_Path, str], environ: Mapping[str, str]
) -> dict[_Path, str]:
    """Variables that YAML took for a number, a date or a truth value where that is wrong; they may be meant as text.

    Nobody writes quotes into an environment variable: DICOMGUARD_NODE__AE_TITLE=123 is a title and no number.
    """
    wrong = {_path(detail) for detail in details}
    return {
        steps: name
        for steps, name in overridden.items()
        if any(path[: len(steps)] == steps for path in wrong)
        and not isinstance(_read(environ[name]), dict | list | str)
    }


def _value(node: yaml.Node, path: _Path, lines: dict[_Path, int], source: str, within: tuple[int, ...]) -> Any:
    lines[path] = node.start_mark.line + 1
    if id(node) in within:
        raise ConfigError(
            f"{source}, line {lines[path]}: an anchor (&) refers to itself here; write the value out instead."
        )
    within = (*within, id(node))
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in found:
                raise ConfigError(f"{source}, line {line}: '{key}' stands here for the second time; keep one.")
            found[key] = _value(value_node, (*path, key), lines, source, within)
            lines[(*path, key)] = line
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, index), lines, source, within) for index, item in enumerate(node.value)]
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}, line {lines[path]}: this value cannot be read; put it in quotes.") from error


def _override(data: dict[str, Any], environ: Mapping[str, str]) -> dict[_Path, str]:
    """Lay environment variables such as DICOMGUARD_NODE__PORT over the file. Returns which paths they set."""
    overridden: dict[_Path, str] = {}
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or name in _NOT_CONFIG:
            continue
        steps: _Path = tuple(
            int(step) if step.isdigit() else step.lower() for step in name.removeprefix(_PREFIX).split("__")
        )
        if steps[0] not in Config.model_fields:
            known = ", ".join(f"{_PREFIX}{field.upper()}" for field in Config.model_fields)
            raise ConfigError(f"The environment variable {name} sets nothing that exists.", advice=f"Known: {known}.")
        overridden[_set(data, steps, _read(environ[name]), name)] = name
    return overridden


def _read(text: str) -> Any:
    """A variable's value as YAML means it; the text itself where it means nothing."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if node is None else _value(node, (), {}, "", ())
    except (yaml.YAMLError, RecursionError, ConfigError):
        return text


def _set(data: dict[str, Any], steps: _Path, value: Any, name: str) -> _Path:
    """Put a value where a variable says. Returns the path with the keys as the file spells them."""
    here: Any = data
    path: _Path = ()
    for step, following in zip(steps, (*steps[1:], None), strict=True):
        empty: Any = value if following is None else ([] if isinstance(following, int) else {})
        if isinstance(here, list) and isinstance(step, int) and step <= len(here):
            if step == len(here):
                here.append(empty)
        elif isinstance(here, dict) and isinstance(step, str):
            step = _real_key(here, step)  # noqa: PLW2901  # DICOM keywords are in camel case, variables are not
            here.setdefault(step, empty)
        else:
            raise ConfigError(
                f"The environment variable {name} does not fit the file at '{step}'.",
                advice="List items count from 0 without gaps.",
            )
        if following is None or here[step] is None:
            here[step] = empty  # 'peers:' with nothing below it is as good as no such line
        here = here[step]
        path = (*path, step)
    return path


def _real_key(mapping: Mapping[str, Any], step: str) -> str:
    return next((key for key in mapping if key.lower() == step), step)


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f", line {mark.line + 1}"


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong, without the line that it is wrong in: that may hold the ledger's password."""
    if isinstance(error, yaml.composer.ComposerError):
        return "a value that begins with * names nothing; put it in quotes"
    return str(getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed")


def _path(detail: Any) -> _Path:
    return tuple(step for step in detail["loc"] if step != "[key]")


def _line(path: _Path, lines: Mapping[_Path, int]) -> int:
    """The line of the nearest thing that stands in the file."""
    return next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), 1)


def _explain(detail: Any, lines: Mapping[_Path, int], source: str, overridden: Mapping[_Path, str]) -> str:
    path = _path(detail)
    variable = next((name for steps, name in overridden.items() if path[: len(steps)] == steps), None)
    where = f"environment variable {variable}" if variable else f"{source}, line {_line(path, lines)}"
    dotted = ".".join(map(str, path))
    if detail["type"] == "extra_forbidden":
        known = list(_fields(path[:-1]))
        close = difflib.get_close_matches(str(path[-1]), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}"
        return f"{where}: unknown key '{dotted}'; {hint}."
    if detail["type"] == "missing":
        return f"{where}: '{dotted}' is missing; add it."
    if detail["type"] == "model_type":
        return f"{where}: '{dotted}' is a section; write keys below it: {', '.join(_fields(path))}."
    if detail["type"] in {"tuple_type", "dict_type"}:
        return f"{where}: {_wanted(path, detail['type'])}."
    # A ledger's URL holds a password, and this goes to the log.
    is_hidden = path == ("ledger",) or isinstance(detail["input"], dict | list | tuple | BaseModel)
    shown = "" if is_hidden else f" (found: {detail['input']!r})"
    if detail["type"] == "string_type":
        return f"{where}: {dotted}: text is meant here; put it in quotes{shown}."
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{where}: {dotted + ': ' if dotted else ''}{message}{shown}."


def _wanted(path: _Path, kind: str) -> str:
    dotted = ".".join(map(str, path))
    if kind == "dict_type":
        return f"'{dotted}' holds keys; write them below it, such as 'Modality: [CR, DX]', or leave '{path[-1]}' out"
    fields = _fields(path)
    if not fields:
        return f"'{dotted}' is a list; write [A, B], or leave '{path[-1]}' out"
    item = ", ".join(f"{name}: ..." for name, field in fields.items() if field.is_required())
    return f"'{dotted}' is a list; write one item a line below it, such as '- {{{item}}}', or '{path[-1]}: []' for none"


def _fields(path: _Path) -> Mapping[str, Any]:
    """The fields of the section that `path` leads to."""
    model: Any = Config
    for step in path:
        if isinstance(step, str) and isinstance(model, type) and issubclass(model, BaseModel):
            annotation: Any = model.model_fields[step].annotation if step in model.model_fields else None
            arguments = getattr(annotation, "__args__", ())
            model = next((a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)), annotation)
    return model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else {}


def _resolve(config: Config, folder: Path) -> Config:
    """Every path absolute, so that neither a service's working directory nor a person's matters."""

    def here(path: Path | None) -> Path | None:
        return None if path is None else (folder / path.expanduser()).resolve()

    return config.model_copy(
        update={
            "data_dir": here(config.data_dir),
            "site_key_file": here(config.site_key_file),
            "bundles": tuple(
                bundle.model_copy(update={"path": here(bundle.path), "enrolment": here(bundle.enrolment)})
                for bundle in config.bundles
            ),
        }
    )
