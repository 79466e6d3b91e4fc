"""One configuration per run: dataclass defaults <- YAML file <- `key=value` arguments, read once and checked here."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ttepretrain.errors import ConfigError
from ttepretrain.plain_text import shown

MAX_BYTES = 1 << 20
MAX_ALIASES = 20
MAX_DEPTH = 20

Config = TypeVar("Config")


def load_config(schema: type[Config], path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Instance of the dataclass `schema` with the file's and then the arguments' values.

    Raises ConfigError naming the full key, the value and the nearest valid key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    layers = []
    if path is not None:
        layers.append((str(path), OmegaConf.create(read_yaml(path))))
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"arguments are key=value; got {override!r}")
        try:
            layers.append((f"argument {override!r}", OmegaConf.from_dotlist([override])))
        except Exception as error:  # OmegaConf passes the YAML parser's errors through
            raise ConfigError(f"argument {override!r} cannot be read: {error}") from None

    merged = OmegaConf.structured(schema)
    for origin, layer in layers:
        values = OmegaConf.to_container(layer, resolve=False)
        assert isinstance(values, dict)
        _check_values(origin, values)
        _check_keys(origin, schema, values)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            key, message = getattr(error, "full_key", None) or "?", str(error).splitlines()[0]
            if "is not a ListConfig" in message or "is not a TupleConfig" in message:
                message = f"a list is needed; write [{OmegaConf.select(layer, key)}]"
            raise ConfigError(f"{origin}: {key}: {message}") from None
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ConfigError(
            f"{path or 'arguments'}: no value for {', '.join(missing)}; set them in the file or as key=value"
        )
    try:
        config = OmegaConf.to_object(merged)
    except ConfigError as error:
        raise ConfigError(f"{path or 'arguments'}: {error}") from None
    assert isinstance(config, schema)
    return config


def dump_config(config: Any, path: Path) -> None:
    """Write the resolved configuration as YAML that `load_config` reads back to an equal instance."""
    from omegaconf import OmegaConf

    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def require(condition: bool, key: str, value: object, rule: str) -> None:
    """Border check used by the dataclasses' `__post_init__`."""
    if not condition:
        raise ConfigError(f"{key} {rule}; got {shown(value)}")


def check_types(instance: Any, section: str = "", but: Sequence[str] = ()) -> None:
    """ConfigError for the first field of a dataclass whose value is not of the declared type, or not finite.

    but: fields that the caller checks.
    Whoever builds the dataclass: a file of somebody else's is read as strictly as a configuration.
    """
    for name, hint in _type_hints(type(instance)).items():  # type: ignore[arg-type]  # mypy: a type is not hashable
        value = getattr(instance, name)
        if name not in but and not is_of(value, hint):
            require(False, f"{section}.{name}" if section else name, value, f"must be {_in_words(hint)}")


def require_choice(key: str, value: object, choices: Sequence[str]) -> None:
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    require(value in choices, key, value, f"must be one of {', '.join(choices)}{hint}")


def is_of(value: object, hint: Any) -> bool:
    """Is the value of a declared type? No bool is a number, and no NaN."""
    if hint is float:  # a whole number is one too; no NaN passes the comparison
        return _is_number(value, numbers.Real) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
    if hint is int:
        return _is_number(value, numbers.Integral)
    inner = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(is_of(value, kind) for kind in inner)
    kind = typing.get_origin(hint) or hint
    if kind in (list, tuple):
        if not isinstance(value, list | tuple):
            return False
        if kind is tuple and Ellipsis not in inner:
            return len(value) == len(inner) and all(map(is_of, value, inner))
        return all(is_of(item, inner[0]) for item in value)
    return isinstance(value, kind)


@cache
def _type_hints(schema: type) -> dict[str, Any]:
    hints = typing.get_type_hints(schema)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _in_words(hint: Any) -> str:
    known = {float: "a finite number", int: "a whole number", bool: "true or false", str: "text", dict: "a mapping"}
    if hint in known:
        return known[hint]
    inner = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return " or ".join("null" if kind is types.NoneType else _in_words(kind) for kind in inner)
    if typing.get_origin(hint) in (list, tuple):
        several = typing.get_origin(hint) is list or Ellipsis in inner
        return f"a list, each {_in_words(inner[0])}" if several else f"{len(inner)} values, each {_in_words(inner[0])}"
    return f"of type {getattr(hint, '__name__', hint)}"


def valid_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Full dotted names of all leaves of a nested dataclass."""
    for field in dataclasses.fields(schema):
        nested = _nested(field)
        if nested:
            yield from valid_keys(nested, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def _nested(field: dataclasses.Field) -> type | None:
    factory: object = field.default_factory
    return factory if isinstance(factory, type) and dataclasses.is_dataclass(factory) else None


def _leaves(values: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_keys(origin: str, schema: type, values: dict) -> None:
    valid = list(valid_keys(schema))
    sections = {key.rpartition(".")[0] for key in valid}
    for key, value in _leaves(values):
        if key in valid or (value in ({}, None) and key in sections):
            continue
        near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; `--help` lists the keys"
        raise ConfigError(f"{origin}: unknown key {key}{hint}")


def _check_values(origin: str, values: dict) -> None:
    for key, value in _leaves(values):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and "${" in item:
                raise ConfigError(f"{origin}: {key}: interpolation is not allowed, write the value itself")
            if isinstance(item, float) and not math.isfinite(item):
                raise ConfigError(f"{origin}: {key} must be a finite number; got {item}")


def read_yaml(path: Path) -> dict:
    """Plain YAML mapping; size, depth and aliases are bounded and tags refused before anything is built."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: {size} bytes; a configuration file has at most {MAX_BYTES}")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; give the path of a YAML file, such as configs/default.yaml"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    aliases = depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            aliases += isinstance(event, yaml.AliasEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if getattr(event, "tag", None):
                raise ConfigError(
                    f"{path}: line {event.start_mark.line + 1}: YAML tags are not allowed; got {event.tag}"
                )
            if aliases > MAX_ALIASES or depth > MAX_DEPTH:
                raise ConfigError(f"{path}: more than {MAX_ALIASES} aliases or {MAX_DEPTH} levels")
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False) if text.strip() else {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except OmegaConfBaseException as error:  # a key that is null, or 1 beside "1"
        raise ConfigError(f"{path}: {' '.join(str(error).split())}; write keys as text, each once") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got a {type(values).__name__}")
    return values
