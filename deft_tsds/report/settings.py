"""A nested config as a list of settings, by the names that the command line takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def flat(config: Mapping[str, Any], prefix: str = "") -> tuple[tuple[str, str], ...]:
    """A nested config as (path, value) pairs, with the paths that the command line takes."""
    pairs: list[tuple[str, str]] = []
    for name, value in config.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            pairs += flat(value, f"{path}.")
        else:
            pairs.append((path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return tuple(pairs)
