"""The configurations' fields as options: of the commands, and of config.yaml.

What an option is called, may be and does stands at its field (see Setting): a new field of the
engine is an option of the job, the endpoint and config.yaml at once. Knows neither of them.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, get_origin

import typer

from shardrank.actors.config import Setting, settings_of, without_none
from shardrank.actors.fetch.web import WebMedia
from shardrank.actors.media.video import missing_reader

Command = TypeVar("Command", bound=Callable[..., None])
T = TypeVar("T")

_MANY = (tuple[str, ...], str | tuple[str, ...])
_NETWORKS = Setting(
    "With --web-media: a network (CIDR) that may be fetched from too", flag="--allow-network"
)


@dataclass(frozen=True, slots=True)
class Option:
    """One of them, for one field; `default` is MISSING where it must be given."""

    kind: Any
    default: Any
    setting: Setting

    def parameter(self, name: str) -> inspect.Parameter:
        """A typer command's, by keyword."""
        needs_value = self.default is MISSING or self.kind == list[str]
        option = typer.Option(*filter(None, [self.setting.flag]), help=self.setting.help)
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if needs_value else self.default,
            annotation=Annotated[self.kind | None if needs_value else self.kind, option],
        )

    @property
    def field(self) -> tuple[Any, Any]:
        """A pydantic model's, None being the default. A choice is checked by its configuration,
        which says so in our own words.
        """
        kind, _ = without_none(self.kind)
        kind = str if get_origin(kind) is Literal else kind
        return (kind, ...) if self.default is MISSING else (kind | None, None)


def options_of(configuration: Any, *but: str) -> dict[str, Option]:
    """All by their names, those of the configurations within it too, `but` these."""
    found: dict[str, Option] = {}
    for field, name, kind, setting in _described(configuration):
        default = _default_of(field)
        if kind is WebMedia:
            kind, default = bool, default is not None
            found["allowed_networks"] = Option(list[str], (), _NETWORKS)
        elif kind in _MANY:
            kind = list[str]
        elif default is None:
            kind = kind | None
        found[name] = Option(kind, default, setting)
    within: dict[str, Option] = {}
    for field in fields(configuration):
        within |= options_of(field.type) if is_dataclass(field.type) else {}
    found |= within | found
    return {name: option for name, option in found.items() if name not in but}


def built(configuration: type[T], given: Mapping[str, Any], **fixed: Any) -> T:
    """The configuration and those within it, of options by their names; the fields of those that
    are left out have their defaults. fixed: fields that are known. Raises ValueError.
    """
    values: dict[str, Any] = {}
    for field in fields(configuration):  # type: ignore[arg-type]  # a dataclass, as T cannot say
        if is_dataclass(field.type) and field.name not in fixed:
            values[field.name] = built(field.type, given)  # type: ignore[arg-type]
    for field, name, kind, _ in _described(configuration):
        if kind is WebMedia:
            networks = tuple(given.get("allowed_networks") or ())
            is_allowed = given.get(name, _default_of(field) is not None)
            if networks and given.get(name) is False:
                raise ValueError("allowed_networks (--allow-network) count only with web_media")
            values[field.name] = WebMedia(allowed_networks=networks) if is_allowed else None
        elif name in given:
            values[field.name] = tuple(given[name] or ()) if kind in _MANY else given[name]
    return configuration(**values | fixed)


def built_here(configuration: type[T], given: Mapping[str, Any], **fixed: Any) -> T:
    """The same for this machine. ValueError where it has not what the options need."""
    lacking = given["video_reader"] != "pyav" and missing_reader(given["video_reader"])
    if lacking:
        raise ValueError(lacking)
    return built(configuration, given, **fixed)


def with_options(options: Mapping[str, Option]) -> Callable[[Command], Command]:
    """Decorates a command, which is given them as its **keywords."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        more = [option.parameter(name) for name, option in options.items()]
        command.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        return command

    return decorate


def _described(configuration: Any) -> Iterator[tuple[Any, str, Any, Setting]]:
    """Its own fields that are options: each with its name, its type without None, its Setting."""
    known = settings_of(configuration)
    for field in fields(configuration):
        if field.name in known:
            kind, setting = known[field.name]
            yield field, setting.name or field.name, without_none(kind)[0], setting


def _default_of(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
