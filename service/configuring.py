"""Configuration files: YAML or TOML of a few known keys; nothing in them is run or followed."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import PurePath

import yaml
from pydantic import ValidationError

from service.errors import Refused
from service.schemas import Configuration

#: Largest file.
MAX_BYTES = 64 << 10
_YAML = ("application/x-yaml", "application/yaml", "text/yaml", "text/x-yaml")
_TOML = ("application/toml", "application/x-toml", "text/toml", "text/x-toml")
#: Types that say nothing: then the name's ending does.
_VAGUE = ("", "application/octet-stream", "text/plain")


class _Loader(yaml.SafeLoader):
    """YAML without tags and without aliases, which can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None):
            raise yaml.YAMLError("tags are not read")
        return super().compose_node(parent, index)


def parse(data: bytes, media: str, name: str) -> Configuration:
    """Read a configuration.

    Args:
        data: the file.
        media: type that the client gave.
        name: of the file; only its ending is looked at.
    Raises:
        Refused: it is of another type, too large, damaged, or has unknown keys or bad values.
    """
    kind = _kind(media.partition(";")[0].strip().lower(), PurePath(name).suffix.lower())
    if kind is None:
        raise Refused(f"file type of {media or 'nothing'!r} is not supported: send YAML or TOML")
    if len(data) > MAX_BYTES:
        raise Refused(f"a configuration has {MAX_BYTES >> 10} KiB at most, not {len(data)} bytes")
    try:
        text = data.decode("utf-8")
        found = tomllib.loads(text) if kind == "TOML" else yaml.load(text, _Loader)
    except (ValueError, yaml.YAMLError, RecursionError, OverflowError) as exc:
        line = (str(exc).splitlines() or [""])[0][:200]
        raise Refused(f"the file is no {kind} that is read: {line}") from exc
    if not isinstance(found, Mapping):
        raise Refused("the file is no table of keys and values, such as model: default-x4")
    try:
        return Configuration.model_validate(dict(found))
    except ValidationError as exc:
        raise Refused(f"the configuration cannot be: {explained(exc)}") from exc


def _kind(media: str, ending: str) -> str | None:
    if media in _YAML or (media in _VAGUE and ending in (".yaml", ".yml")):
        return "YAML"
    if media in _TOML or (media in _VAGUE and ending == ".toml"):
        return "TOML"
    return None


def explained(error: ValidationError) -> str:
    """Say in one line what pydantic found, without repeating what was sent."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    lines = (f"{'.'.join(map(str, one['loc'])) or 'all'}: {one['msg']}" for one in found[:5])
    return "; ".join(lines)[:500]
