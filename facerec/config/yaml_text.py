"""YAML whose values are text, as on a command line: settings read it by their own rules, wherever it was written.

YAML 1.1 takes `yes` for a boolean, `010` for eight, `1:30` for ninety and `2026-01-01` for a date, and a boolean is
a number in Python. Here none of that is guessed: a value is text, a list, a mapping, or nothing (`null`, `~`, empty).
Files come from strangers: aliases, of which five hundred bytes make gigabytes, are refused, and so are deep nesting
and endless values.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import yaml

TAG = "tag:yaml.org,2002:"
MAX_BYTES = 100_000  # of a file, and so of the time that PyYAML takes for one: a second
MAX_DEPTH = 16
MAX_VALUE = 4096  # characters; the longest path that Linux takes


class TextLoader(yaml.SafeLoader):
    """A safe loader that recognises nothing but null, and refuses a key that is given twice."""

    # types-PyYAML declares the class's table as if each loader had its own.
    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]
        first: [(tag, pattern) for tag, pattern in known if tag == f"{TAG}null"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors: ClassVar = {
        f"{TAG}null": yaml.SafeLoader.construct_yaml_null,
        f"{TAG}seq": yaml.SafeLoader.construct_yaml_seq,
        f"{TAG}map": yaml.SafeLoader.construct_yaml_map,
        None: yaml.SafeLoader.construct_undefined,
        **{
            f"{TAG}{k}": yaml.SafeLoader.construct_yaml_str for k in ("str", "int", "float", "bool")
        },
    }

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A value with all that is in it, within the limits."""
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise _refused("an alias (*name) is not taken: write the value out", mark)
        if self.depth > MAX_DEPTH:
            raise _refused(f"nested deeper than {MAX_DEPTH} levels", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:  # a name, or None
        """Text that can be kept in UTF-8."""
        node = super().compose_scalar_node(anchor)
        if len(node.value) > MAX_VALUE:
            raise _refused(f"a value of more than {MAX_VALUE} characters", node.start_mark)
        if any("\ud800" <= c <= "\udfff" for c in node.value):
            raise _refused("half of a UTF-16 pair is no character", node.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping; YAML leaves it open which of two equal keys counts."""
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for twice, times in Counter(keys).items():
            if times > 1:
                raise _refused(f"the key {twice[:50]!r} is given twice", node.start_mark)
        return node


def _refused(problem: str, mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.composer.ComposerError(None, None, problem, mark)


def read(path: Path) -> Any:
    """`load` of a file's text.

    Raises:
        ValueError: more than 100,000 bytes, or not UTF-8.
        OSError: it cannot be read.
        yaml.YAMLError: as `load`.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    return load(path.read_text(encoding="utf-8"))


def load(text: str) -> Any:
    """What a YAML text says.

    Returns:
        str, None, or lists and dicts of them.

    Raises:
        yaml.YAMLError: not YAML, a tag such as !!timestamp, a key that is given twice, an alias, more than 16 levels,
            or a value that is longer than 4,096 characters or not text.
    """
    loader = TextLoader(text)
    loader.name = "the file"  # in messages
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
