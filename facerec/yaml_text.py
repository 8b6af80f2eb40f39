"""YAML whose values are text, as on a command line: settings read it by their own rules, wherever it was written.

YAML 1.1 takes `yes` for a boolean, `010` for eight, `1:30` for ninety and `2026-01-01` for a date, and a boolean is
a number in Python. Here none of that is guessed: a value is text, a list, a mapping, or nothing (`null`, `~`, empty).
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import yaml

TAG = "tag:yaml.org,2002:"
GUESSED = (f"{TAG}null", f"{TAG}merge")  # all that a value's looks may say


class TextLoader(yaml.SafeLoader):
    """A safe loader that recognises nothing but null and `<<`, and refuses a key that is given twice."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in known if tag in GUESSED]
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

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """A mapping; YAML leaves it open which of two equal keys counts."""
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for twice, times in Counter(keys).items():
            if times > 1 and twice != "<<":
                problem = f"the key {twice[:50]!r} is given twice"
                raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        return node


def load(text: str) -> Any:
    """What a YAML text says.

    Returns:
        str, None, or lists and dicts of them.

    Raises:
        yaml.YAMLError: not YAML, a tag such as !!timestamp, or a key that is given twice.
    """
    loader = TextLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
