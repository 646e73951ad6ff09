"""Commands as frozen dataclasses: the one tree is the configuration in Python, the TOML file and the flags."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import json
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import tyro

from .errors import InputError
from .io.text import read_text

Config = TypeVar("Config")


def parse(kind: type[Config], argv: list[str], prog: str, file: str | Path | None = None) -> Config:
    """An instance of the dataclass `kind` from flags, on top of what a TOML `file` says, on top of the defaults.

    Raises InputError for a file that does not fit `kind`, SystemExit(2) for flags that do not, SystemExit(0) for help.
    """
    default = kind() if file is None else load(kind, file)
    return tyro.cli(kind, args=argv, prog=prog, default=default, config=_MARKERS)


def load(kind: type[Config], file: str | Path) -> Config:
    """An instance of the dataclass `kind` from a TOML file: a table for each nested dataclass.

    Raises InputError naming the setting that is unknown or has a wrong value.
    """
    try:
        tree = tomllib.loads(read_text(Path(file)))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file}: is no TOML file: {error}. Correct that line.") from error
    return _filled(kind(), tree, str(file), "")


def dump(config: Any, table: str = "", leaving_out: frozenset[str] = frozenset()) -> str:
    """TOML of a dataclass, which `load` reads; without fields that are None or named in `leaving_out`."""
    lines, tables = [f"[{table}]"] if table else [], []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in leaving_out:
            continue
        if dataclasses.is_dataclass(value):
            tables.append(dump(value, f"{table}.{field.name}" if table else field.name, leaving_out))
        elif value is not None:
            lines.append(f"{field.name} = {_toml(value)}")
    return "\n".join(["\n".join(lines) + "\n", *tables])


def differences(old: Any, new: Any, ignoring: frozenset[str] = frozenset()) -> list[tuple[str, Any, Any]]:
    """(field, old value, new value) wherever two instances of one dataclass differ, nested ones included."""
    found = []
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if field.name in ignoring:
            continue
        if dataclasses.is_dataclass(before):
            found += differences(before, after, ignoring)
        elif before != after:
            found.append((field.name, before, after))
    return found


_MARKERS = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)


def _filled(default: Any, tree: Mapping[str, Any], file: str, table: str) -> Any:
    """`default` with the settings of a TOML tree. Text is taken as it is, all else is read as its flag would be."""
    known = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
    types = typing.get_type_hints(type(default))
    for name, value in tree.items():
        where = f"{table}{name}"
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(known)}."
            raise InputError(f"{file}: there is no setting {where}. {hint}")
        if dataclasses.is_dataclass(known[name]):
            if not isinstance(value, Mapping):
                raise InputError(f"{file}: {where} is a table. Write [{where}], and its settings below it.")
            default = dataclasses.replace(default, **{name: _filled(known[name], value, file, f"{where}.")})
        elif types[name] in (str, str | None) and not isinstance(value, bool | Mapping | list):
            default = dataclasses.replace(default, **{name: str(value)})
        else:
            default = _set_by_flag(default, name, value, f"{file}: {where} = {value!r}")
    return default


def _set_by_flag(default: Any, name: str, value: Any, where: str) -> Any:
    flag = name.replace("_", "-")
    if isinstance(getattr(default, name), bool):
        if not isinstance(value, bool):
            raise InputError(f"{where}: is neither true nor false.")
        return dataclasses.replace(default, **{name: value})
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(type(default), args=[f"--{flag}={_word(value)}"], default=default, config=_MARKERS)
    except SystemExit as error:
        raise InputError(f"{where}: is no value for it. See --{flag} in the command's --help.") from error


def _word(value: Any) -> str:
    """A TOML value as it would be typed after a flag."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={part}" for name, part in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(name))} = {_toml(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value) if isinstance(value, int | float) else json.dumps(str(value), ensure_ascii=False)
