"""Typed configuration: frozen dataclasses, filled from a preset, a YAML file and dotted overrides.

The schema is the dataclass; OmegaConf checks keys and types against it, and the result is turned
into plain objects at once, so that nothing downstream knows OmegaConf. Later sources win: dataclass
defaults, then the preset, then the file, then `key.path=value` arguments. An unknown or ill-typed key
is a `ConfigError` that names the file and line, or the argument, and the nearest valid key.
"""

import dataclasses
import difflib
import textwrap
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from mmfast.errors import ConfigError
from mmfast.files import write_text

T = TypeVar("T")


def load_config(
    schema: type[T],
    *,
    preset: str | None = None,
    preset_package: str | None = None,
    section_presets: Mapping[str, str] | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
) -> T:
    """Builds a `schema` object.

    Args:
        schema: a dataclass, possibly nested.
        preset: name of a YAML file (without `.yaml`) in `preset_package`.
        preset_package: importable package that holds presets, e.g. `mmfast.train.presets`.
        section_presets: for a section with a key `preset`, the package in which the named file lies;
            its values stand below everything else that sets the section's keys. An empty name means
            no preset.
        file: a YAML file of the user's.
        overrides: `key.path=value` strings, e.g. from the command line.

    Raises:
        ConfigError: unknown key, wrong type, value out of range, unreadable file, unknown preset.
    """
    layers: list[tuple[str, str]] = []
    if preset is not None:
        if preset_package is None:
            raise ValueError("a preset needs its preset_package")
        layers.append((f"preset {preset}", _preset_text(preset, preset_package)))
    if file is not None:
        try:
            layers.append((str(file), file.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the configuration {file}: {error}") from error
    defaults: Any = OmegaConf.structured(schema)
    merged = _merge_all(schema, defaults, layers, overrides)
    if section_presets:
        for section, package in section_presets.items():
            name = merged[section].preset
            if name:
                text = textwrap.indent(_preset_text(name, package), "  ")
                source = f"{section} preset {name}"
                defaults = _merge(schema, defaults, f"{section}:\n{text}", source=source)
        merged = _merge_all(schema, defaults, layers, overrides)
    try:
        return cast("T", OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, ValueError):
            raise ConfigError(_first_line(error.__cause__)) from error
        key = str(getattr(error, "full_key", "") or "")
        raise ConfigError(f"key {key!r}: {_first_line(error)}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def config_yaml(config: Any) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal object."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def save_config(config: Any, path: Path) -> None:
    """Writes the resolved configuration."""
    write_text(path, config_yaml(config))


def preset_names(package: str) -> list[str]:
    """Names of the presets (YAML files) in a package, sorted."""
    return sorted(
        p.name[:-5] for p in resources.files(package).iterdir() if p.name.endswith(".yaml")
    )


def _preset_text(preset: str, package: str) -> str:
    names = preset_names(package)
    if preset not in names:
        raise ConfigError(
            f"unknown preset {preset!r}{_did_you_mean(preset, names)}; there are {', '.join(names)}"
        )
    return (resources.files(package) / f"{preset}.yaml").read_text(encoding="utf-8")


def _merge_all(
    schema: type, merged: Any, layers: Sequence[tuple[str, str]], overrides: Sequence[str]
) -> Any:
    """Merges `(source, YAML text)` layers in order, then `key.path=value` arguments."""
    for source, text in layers:
        merged = _merge(schema, merged, text, source=source)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"argument {override!r} is not of the form key.path=value")
        where = f"argument {override!r}"
        try:
            layer = OmegaConf.from_dotlist([override.lstrip("-")])
            if misfit := _misfit(merged, layer):
                raise ConfigError(f"{where}: key {misfit[0]!r} {misfit[1]}")
            merged = OmegaConf.merge(merged, layer)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or _first_line(error)
            raise ConfigError(f"{where}: the value is not valid YAML: {problem}") from error
        except OmegaConfBaseException as error:
            raise _explained(schema, error, where) from error
        except (IndexError, TypeError) as error:  # OmegaConf's parser of keys and brackets
            raise ConfigError(f"{where} is not of the form key.path=value") from error
    return merged


def _merge(schema: type, merged: Any, text: str, *, source: str) -> Any:
    try:
        layer = _layer(merged, text, source=source)
        return OmegaConf.merge(merged, layer)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {_first_line(error)}") from error
    except OmegaConfBaseException as error:
        line = _line_of_key(text, str(getattr(error, "full_key", "") or ""))
        raise _explained(schema, error, f"{source}:{line}" if line else source) from error
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def _layer(merged: Any, text: str, *, source: str) -> Any:
    """A YAML text as a layer that has the schema's sections; raises what `yaml` and OmegaConf do."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None and not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else repr(root.value)
        line = root.start_mark.line + 1
        raise ConfigError(f"{source}:{line}: a configuration holds `key: value`, found {kind}")
    layer = OmegaConf.create(text if root is not None else "{}")
    if misfit := _misfit(merged, layer):
        raise ConfigError(
            f"{source}:{_line_of_key(text, misfit[0])}: key {misfit[0]!r} {misfit[1]}"
        )
    return layer


def _misfit(merged: Any, layer: Any) -> tuple[str, str] | None:
    """The first key of `layer` that gives a value for a section, or keys for a list, and why not."""

    def search(here: Any, there: Any, path: str) -> tuple[str, str] | None:
        if isinstance(here, dict):
            if not isinstance(there, dict):
                return path, f"is a section with keys of its own, found {there!r}"
            for name, value in there.items():
                if name in here and (
                    found := search(here[name], value, f"{path}.{name}" if path else str(name))
                ):
                    return found
        elif isinstance(here, list) and isinstance(there, dict):
            return path, "is a list and is given as a whole, e.g. [{…}, {…}]; found keys of its own"
        return None

    return search(OmegaConf.to_container(merged), OmegaConf.to_container(layer), "")


def _explained(schema: type, error: Exception, where: str) -> ConfigError:
    key = str(getattr(error, "full_key", "") or "")
    if isinstance(error, ConfigKeyError):
        return ConfigError(f"{where}: unknown key {key!r}{_did_you_mean(key, _all_keys(schema))}")
    return ConfigError(f"{where}: key {key!r}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def _all_keys(schema: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a dataclass tree."""
    keys: list[str] = []
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key = f"{prefix}{field.name}"
        keys.append(key)
        for candidate in (hints[field.name], *getattr(hints[field.name], "__args__", ())):
            if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
                keys.extend(_all_keys(candidate, f"{key}."))
    return keys


def _line_of_key(text: str, full_key: str) -> int | None:
    """1-based line on which a dotted key is set in a YAML text, or None."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    line = None
    for part in full_key.split("."):
        if not isinstance(node, yaml.MappingNode):
            break
        for key_node, value_node in node.value:
            if key_node.value == part:
                line, node = key_node.start_mark.line + 1, value_node
                break
        else:
            break
    return line
