"""Recipes: the settings for a known problem, as a TOML file whose keys are train.py's flags.

    load("cars")                    # recipes/cars.toml of this repository
    load("mine/cars.toml")          # any file; {"backbone": "xception", "zoom": (0.8, 1.4), …}, checked

Settings that the file does not name are not in the result, so that their defaults apply. A flag overrides both.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from loupe.errors import UserError
from loupe.training.settings import Settings

RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes"


def load(recipe: str | Path) -> dict[str, Any]:
    """Read a recipe and return its settings, checked."""
    path = find(recipe)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The recipe {path} cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"The recipe {path} is no TOML: {error}. Lines read like `epochs = 10`.") from error
    try:
        return _check(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def find(recipe: str | Path) -> Path:
    """Return the path of a recipe: a file, or the bare name of one in this repository."""
    path = Path(recipe)
    if path.is_file():
        return path
    if path.name == str(recipe) and not path.suffix:
        if (RECIPES / f"{recipe}.toml").is_file():
            return RECIPES / f"{recipe}.toml"
        similar = difflib.get_close_matches(str(recipe), names(), 1, 0.6)
        hint = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(names())}, or name a file."
        raise UserError(f"There is no recipe {str(recipe)!r}; {hint}")
    raise UserError(f"There is no file {path}. Recipes of this repository are {', '.join(names())}.")


def names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def _check(content: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe's values as settings, or raise a UserError that names the key."""
    specs: dict[str, Any] = {spec.name: spec.metadata for spec in fields(Settings)}
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name in values:
            raise UserError(f"{key!r} is there twice, once with - and once with _.")
        if isinstance(value, dict):
            raise UserError(f"[{key}] is a table; a recipe has none, only lines such as `epochs = 10`.")
        spec_metadata = specs.get(name, {})
        items = value if isinstance(value, list) else [value]
        texts = [item for item in items if isinstance(item, str) and item not in spec_metadata.get("words", {})]
        if spec_metadata and texts and spec_metadata["kind"] is not str:  # a flag is always text, but TOML has numbers
            raise UserError(f"{name} takes no text: write {texts[0]} without the quotes.")
        values[name] = value
    settings = Settings().having(values)
    return {name: getattr(settings, name) for name in values}
