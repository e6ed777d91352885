"""YAML text: parsed into a plain tree (`plain_tree`), and formatted so that parsing it gives the same tree."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from embae.datasets.files.plain_tree import DEEPEST, MOST, TOO_DEEP, copy_plain


def parse_yaml(text: str, *, number_keys: bool = False) -> Any:
    """Parses YAML.

    Args:
        text: YAML.
        number_keys: Whether keys may also be integers.

    Raises:
        ValueError: The text is not YAML or not a plain tree, or has tags, repeated keys or unknown aliases.
    """
    if len(text) > MOST:
        raise ValueError(f"longer than {MOST:,} characters")
    try:
        return copy_plain(yaml.load(text, Loader=PlainLoader), number_keys=number_keys)  # a SafeLoader
    except (yaml.YAMLError, OverflowError) as error:  # 1:1:1… in base 60 may be too large for a float
        raise ValueError(" ".join(str(error).split())) from error


def format_yaml(tree: Any, *, ascii_only: bool = False) -> str:
    """A tree as YAML text, keys in their order."""
    return yaml.dump(tree, Dumper=PlainDumper, sort_keys=False, allow_unicode=not ascii_only)


class PlainLoader(yaml.SafeLoader):
    """Safe YAML without tags and repeated keys; reads 3e-4 as a number (YAML 1.1 does not) and dates as text."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        # A tag converts a value to another type, and each conversion fails in its own way.
        if getattr(event, "tag", None) is not None:
            raise ConstructorError(None, None, f"found the tag {event.tag}; expected none", event.start_mark)
        if self._depth > DEEPEST:
            raise ConstructorError(None, None, TOO_DEEP, event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # its hints claim a mapping; it is a name or None
        node = super().compose_mapping_node(anchor)
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise ConstructorError(None, None, f"the key {key.value!r} appears twice", key.start_mark)
                keys.add(key.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST // 100:  # merge keys (<<) of merge keys grow exponentially
            raise ConstructorError(None, None, "its merge keys (<<) expand to too many values", node.start_mark)


_TIMESTAMP = "tag:yaml.org,2002:timestamp"
PlainLoader.yaml_implicit_resolvers = {first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
                                       for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}


class PlainDumper(yaml.SafeDumper):
    """Quotes text that `PlainLoader` would read as a number."""


PlainDumper.yaml_implicit_resolvers = dict(yaml.SafeDumper.yaml_implicit_resolvers)
for _class in (PlainLoader, PlainDumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
                                 list("-+0123456789"))
