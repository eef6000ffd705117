"""Settings from code, the environment and `hivewire.toml`, in this order of weight."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hivewire.codec import shown
from hivewire.errors import SettingsError
from hivewire.settings.schema import SECTIONS, Secret, Setting, Settings, every_setting
from hivewire.settings.targets import Target, checked_address, checked_addresses, hidden
from hivewire.settings.values import accepted, parse_value

FILE_NAME: Final = "hivewire.toml"
FILE_VARIABLE: Final = "HIVEWIRE_CONFIG"
NOT_SETTINGS: Final = frozenset({FILE_VARIABLE, "HIVEWIRE_LOG", "HIVEWIRE_SOAK"})
"""Variables that begin like settings and are read by others."""

_KAFKA_LEAST_LEASE_S: Final = 6.0

_DEFAULT_URLS: Final = {"inmemory": "memory://", "sqlite": "sqlite://"}

log = logging.getLogger(__name__)


class Layer:
    """What one source says, already checked, by dotted name."""

    __slots__ = ("origins", "source", "values")

    def __init__(self, source: str) -> None:
        self.source = source
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    def put(self, setting: Setting, value: Any, origin: str | None = None) -> None:
        origin = origin or self.source
        if setting.name in self.values:
            raise SettingsError(f"the setting {setting.name} is given twice in {origin}")
        try:
            self.values[setting.name] = parse_value(setting, value)
        except (ValueError, OverflowError):
            given = "its value" if isinstance(setting.default, Secret) else _without_login(value)
            raise SettingsError(
                f"the setting {setting.name} in {origin}: {given} is not accepted; accepted: {accepted(setting)}"
            ) from None
        self.origins[setting.name] = origin


def load(target: str | Settings | None = None, **code: Any) -> Settings:
    """The settings in force: code (and the URL) over environment over `hivewire.toml` over defaults.

    Raises `SettingsError` for names that do not exist and values that are not accepted, whatever their
    source. Opens no connection.
    """
    if isinstance(target, Settings):
        return _from_struct(target, code)
    environ = os.environ
    layers = [_from_code(target, code), _from_environment(environ), _from_file(environ)]
    return _joined(layers)


def _from_struct(target: Settings, code: Mapping[str, Any]) -> Settings:
    made = Layer("the Settings object")
    for section, struct in SECTIONS.items():
        if not isinstance(held := getattr(target, section), struct):
            raise SettingsError(f"{section} in {made.source} is of type {struct.__name__}, not {type(held).__name__}")
    for setting in every_setting():
        holder = getattr(target, setting.section) if setting.section else target
        value = getattr(holder, setting.field)
        if value != setting.default:
            made.put(
                setting, None if isinstance(value, Secret) and not value else value, target.origins.get(setting.name)
            )
    return _joined([_from_code(None, code), made])


# ------------------------------------------------------------------------------------------- sources


def _from_code(target: str | None, code: Mapping[str, Any]) -> Layer:
    layer = Layer("the code")
    if target is not None:
        if not isinstance(target, str):
            raise SettingsError(f"connect takes a URL or a Settings object, not {type(target).__name__}")
        if "url" in code:
            raise SettingsError("the setting url is given twice in the code")
        layer.put(_by_name()["url"], target)
    for name, value in code.items():
        if name in SECTIONS:
            _put_section(layer, name, value)
        else:
            layer.put(_named(name, "the code"), value)
    return layer


def _from_environment(environ: Mapping[str, str]) -> Layer:
    layer = Layer("the environment")
    by_env = {setting.env: setting for setting in every_setting()}
    for variable, value in environ.items():
        if variable in by_env:
            if value:  # an empty variable is an unset one, as in the reference
                layer.put(by_env[variable], value, f"the environment variable {variable}")
        elif variable.startswith("HIVEWIRE_") and variable not in NOT_SETTINGS:
            raise SettingsError(f"there is no setting {variable} (in the environment){_near(variable, list(by_env))}")
    return layer


def _from_file(environ: Mapping[str, str]) -> Layer:
    named = environ.get(FILE_VARIABLE)
    path = Path(named or FILE_NAME)
    layer = Layer(str(path))
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        if named:
            raise SettingsError(f"{FILE_VARIABLE} names {named!r}, which does not exist") from None
        return layer
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {str(path)!r} can not be read: {error}") from None
    import tomllib

    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError(f"the settings file {str(path)!r} is not TOML: {error}") from None
    for name, value in table.items():
        if name in SECTIONS:
            _put_section(layer, name, value)
        else:
            layer.put(_named(name, layer.source, flat=False), value)
    return layer


def _put_section(layer: Layer, section: str, value: Any) -> None:
    if isinstance(value, SECTIONS[section]):
        default = SECTIONS[section]()
        value = {
            name: getattr(value, name)
            for name in value.__struct_fields__
            if getattr(value, name) != getattr(default, name)
        }
    if not isinstance(value, Mapping):
        raise SettingsError(f"{section} in {layer.source} is a table of settings, not {type(value).__name__}")
    for name, item in value.items():
        layer.put(_named(f"{section}.{name}", layer.source), item)


# ------------------------------------------------------------------------------------------- names


def _by_name() -> dict[str, Setting]:
    return {setting.name: setting for setting in every_setting()}


def _named(name: str, source: str, *, flat: bool = True, section: str = "") -> Setting:
    """The setting of that name, or the reference's: without the unit at the end.

    In code `redis_pool_size` is `redis.pool_size`; in a URL's query, names of its own section come first.
    """
    known = _by_name()
    tries = [f"{section}.{name}", name] if section else [name]
    if flat and "." not in name:
        tries += [f"{head}.{name[len(head) + 1 :]}" for head in SECTIONS if name.startswith(f"{head}_")]
    for attempt in tries:
        for full in (attempt, f"{attempt}_s", f"{attempt}_bytes"):
            if full in known:
                return known[full]
    raise SettingsError(f"there is no setting {name} (in {source}){_near(name, list(known))}")


def _near(name: str, known: list[str]) -> str:
    if (bare := name.removeprefix("HIVEWIRE_")) in known:
        return f"; its name is {bare}, as in the reference"
    from difflib import get_close_matches

    near = get_close_matches(name, known, 3, 0.5)
    return f"; did you mean {' or '.join(near)}?" if near else "; `hivewire config` lists all"


def _without_login(value: Any) -> str:
    return shown(hidden(value) if isinstance(value, str) and "://" in value else value)


# ------------------------------------------------------------------------------------------- joining


def _joined(layers: list[Layer]) -> Settings:
    _choose_target(layers)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    weights: dict[str, int] = {}
    for weight, layer in enumerate(reversed(layers)):
        values.update(layer.values)
        origins.update(layer.origins)
        weights.update(dict.fromkeys(layer.values, weight))
    _fill_general(values, origins, weights)
    _check_lease(values, origins)
    _check_together(values, origins)
    values.setdefault("url", _DEFAULT_URLS.get(values.get("protocol", "inmemory")))
    sections: dict[str, Any] = {}
    for section, struct in SECTIONS.items():
        own = {s.field: values[s.name] for s in every_setting() if s.section == section and s.name in values}
        sections[section] = struct(**own)
    general = {s.field: values[s.name] for s in every_setting() if not s.section and s.name in values}
    return Settings(**general, **sections, origins=origins)


def _choose_target(layers: list[Layer]) -> None:
    """The first source with a URL or a protocol decides on both; the URL's own settings join its source."""
    chosen: str | None = None
    for layer in layers:
        protocol, url = layer.values.get("protocol"), layer.values.pop("url", None)
        origin = layer.origins.pop("url", layer.source)
        target = Target(url) if url is not None else None
        if protocol and target and protocol != target.protocol:
            raise SettingsError(
                f"{layer.source} says both protocol = {protocol} and the URL {target.url}; leave one of them away"
            )
        chosen = chosen or protocol
        if target is None or chosen not in (None, target.protocol):
            continue  # no URL here, or one of a store that a weightier source has overruled
        chosen = target.protocol
        _put_target(layer, target, origin)
    if chosen:
        layers[0].values["protocol"] = chosen


def _put_target(layer: Layer, target: Target, origin: str) -> None:
    from_url = Layer(f"the URL in {origin}" if origin != "the code" else "the URL")
    known = _by_name()
    for name, value in target.values.items():
        from_url.put(known[name], value)
    for name, text in target.query.items():
        setting = _named(name, from_url.source, flat=False, section=target.protocol)
        if setting.name in ("url", "protocol") or (setting.section and setting.section != target.protocol):
            raise SettingsError(f"{setting.name} can not stand in the query of a URL")
        from_url.put(setting, text)
    from_url.values["url"], from_url.origins["url"] = target.url, origin
    if "protocol" not in layer.values:
        from_url.values["protocol"], from_url.origins["protocol"] = target.protocol, from_url.source
    layer.values = from_url.values | layer.values
    layer.origins = from_url.origins | layer.origins


def _fill_general(values: dict[str, Any], origins: dict[str, str], weights: Mapping[str, int]) -> None:
    """Reference names such as REDIS_MESSAGE_TTL set the general setting, unless that is set itself, by a
    source of the same weight or more."""
    protocol = values.get("protocol", "inmemory")
    for setting in every_setting():
        general = setting.about.sets
        if not general or setting.section != protocol or values.get(setting.name) is None:
            continue
        if weights[setting.name] > weights.get(general, -1):
            values[general] = values[setting.name]
            origins[general] = origins[setting.name]


def _check_lease(values: dict[str, Any], origins: dict[str, str]) -> None:
    if values.get("protocol") != "kafka":
        return
    lease_s = values.get("lease_s")
    if lease_s is not None and lease_s < _KAFKA_LEAST_LEASE_S:
        log.warning("lease_s raised to the least that Kafka allows", extra={"given_s": lease_s, "lease_s": 6.0})
    if lease_s is None or lease_s < _KAFKA_LEAST_LEASE_S:
        values["lease_s"] = _KAFKA_LEAST_LEASE_S
        origins["lease_s"] = f"{origins['lease_s']}, raised" if "lease_s" in origins else "default on Kafka"


def _check_together(values: dict[str, Any], origins: dict[str, str]) -> None:
    for name, port in (("redis.addr", 6379), ("kafka.brokers", 9092)):
        try:
            if isinstance(values.get(name), str):
                values[name] = checked_addresses(values[name], port)
            elif name in values:
                values[name] = tuple(checked_address(broker, port) for broker in values[name])
        except SettingsError as error:
            raise SettingsError(f"the setting {name} in {origins[name]}: {error}") from None
    _check_redis(values, origins)
    schema = values.get("postgres.schema", "public")
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", schema):
        where = origins["postgres.schema"]
        raise SettingsError(f"the setting postgres.schema in {where}: accepted is a name of a-z, 0-9 and _")
    if values.get("retry_first_s", 1.0) > values.get("retry_most_s", 60.0):
        where = origins.get("retry_first_s") or origins["retry_most_s"]
        raise SettingsError(f"the setting retry_first_s in {where}: accepted is at most retry_most_s")


def _check_redis(values: dict[str, Any], origins: dict[str, str]) -> None:
    several = "," in values.get("redis.addr", "")
    master = values.get("redis.sentinel_master") is not None
    if values.get("redis.cluster") and master:
        where = origins["redis.sentinel_master"]
        raise SettingsError(f"the setting redis.sentinel_master in {where}: a cluster (redis.cluster) has no sentinels")
    if several and not master:
        if values.get("redis.cluster") is False:
            where = origins["redis.cluster"]
            raise SettingsError(f"the setting redis.cluster in {where}: several addresses are those of a cluster")
        values["redis.cluster"] = True
        origins["redis.cluster"] = origins["redis.addr"]
    if values.get("redis.db") and values.get("redis.cluster"):
        raise SettingsError(f"the setting redis.db in {origins['redis.db']}: accepted is 0; a cluster has no other")
