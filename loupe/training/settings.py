"""All choices of a training in one table: these names are train.py's flags, a recipe's keys and the report's settings.

    settings = Settings().having({"backbone": "mobilenetv2", "epochs": 10})     # checked; errors name the flag
    add_flags(parser)                                                           # --backbone, --epochs, …
    settings.resolved.lr, settings.resolved.batch_size                          # None became what suits the network

A default of None means that the value depends on the network and its weights, or that --tune may choose it (see
`resolved`). No TensorFlow in here.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any

from loupe.errors import UserError

TRANSFER = ("xception", "mobilenetv2", "resnet50", "inceptionv3", "efficientnetv2b0", "efficientnetlite0")
PLAIN = ("cnn", "cnn-large")  # trained from scratch, every layer
SMALLEST_SIZE = {"xception": 71, "inceptionv3": 75}  # px, the least side they can take; 32 for all others
ALL = 1_000_000  # --fine-tune all
HEAD = 256  # width of a hidden layer, if one is wanted and nothing is said of its width
TUNED = ("lr", "head", "dropout", "decay")  # what --tune chooses, unless it is given
# Under which headings --help shows the flags, in the order in which people need them.
GROUPS = {
    "data": "Where pictures and classes are found, and what is kept from training.",
    "network": "What is trained, and from which weights.",
    "training": "How the head is trained, or the whole of a plain network (cnn, cnn-large).",
    "fine-tuning": "Afterwards, the backbone's last layers.",
    "augmentation": "How pictures are varied at random in training. All off by default.",
    "search": "Settings of the head, tried before it is trained; what is given stays.",
    "evaluation": "When an answer is called certain.",
    "where things go": "Names and folders.",
}


def _flag(default: Any, group: str, text: str, **options: Any) -> Any:
    return field(default=default, metadata={"group": group, "help": text, **options})


def _range(low: float, high: float, pair: bool = False) -> dict[str, Any]:
    return {"low": low, "high": high, "pair": pair}


@dataclass(frozen=True)
class Settings:
    name: str | None = _flag(
        None, "where things go", "what the run and the model are called (DATA's name)", kind=str,
        pattern=r"[A-Za-z0-9][A-Za-z0-9_.-]*",
    )  # fmt: skip
    seed: int = _flag(42, "training", "another seed, another start, split and order (42)", kind=int, **_range(0, 2**31))

    csv: str | None = _flag(None, "data", "a table of ids and labels (found in DATA: train.csv, …)", kind=str)
    images: str | None = _flag(None, "data", "where the table's pictures lie (found beside it)", kind=str)
    id_column: str | None = _flag(None, "data", "the table's column of picture names (detected)", kind=str)
    label_column: str | None = _flag(None, "data", "the table's column of classes (detected)", kind=str)
    validation: float = _flag(
        0.15, "data", "share cut from training where DATA has none (0.15)", kind=float, **_range(0.01, 0.5)
    )
    test: float = _flag(
        0.15, "data", "the same for testing; 0: none, validation measures (0.15)", kind=float, **_range(0, 0.5)
    )

    backbone: str = _flag("xception", "network", "{choices} (xception)", kind=str, choices=TRANSFER + PLAIN)
    weights: str = _flag(
        "imagenet",
        "network",
        "imagenet (downloaded once; efficientnetlite0: a package), none, or a file or run to start from",
        kind=str,
    )
    size: int = _flag(224, "network", "side of the model's input, in pixels (224)", kind=int, **_range(32, 1024))
    head: int | None = _flag(
        None, "network", "width of a layer before the classes; 0: none (0, or 256 with --dropout)", kind=int,
        **_range(0, 8192),
    )  # fmt: skip
    dropout: float | None = _flag(
        None, "network", "share of that layer left out in training (0.2)", kind=float, **_range(0, 0.9)
    )

    epochs: int | None = _flag(
        None, "training", "times through the training pictures (100, stopped early; plain: 18)", kind=int,
        **_range(1, 100_000),
    )  # fmt: skip
    batch_size: int | None = _flag(None, "training", "pictures a step (32; plain: 8)", kind=int, **_range(1, 4096))
    lr: float | None = _flag(
        None, "training", "highest learning rate (1e-4; plain: 3e-3)", kind=float, **_range(1e-9, 10)
    )
    optimizer: str = _flag(
        "adamw", "training", "{choices} (adamw)", kind=str, choices=("adam", "adamw", "sgd", "rmsprop")
    )
    decay: float | None = _flag(None, "training", "weight decay (1e-3)", kind=float, **_range(0, 1))
    schedule: str = _flag(
        "cosine",
        "training",
        "how the rate falls: {choices} (cosine)",
        kind=str,
        choices=("cosine", "constant", "plateau"),
    )
    ema: float = _flag(0.0, "training", "momentum of averaged weights; 0: none (0)", kind=float, **_range(0, 0.9999))
    patience: int | None = _flag(
        None, "training", "epochs without a better validation loss before it stops (10; plain: never)", kind=int,
        **_range(1, 100_000),
    )  # fmt: skip
    class_weights: bool = _flag(False, "training", "weigh rare classes more", kind=bool)
    label_smoothing: float = _flag(
        0.0, "training", "share of each label spread over all classes (0)", kind=float, **_range(0, 0.5)
    )
    precision: str = _flag(
        "auto", "training", "{choices}; auto: float16 on a GPU, else float32 (auto)", kind=str,
        choices=("auto", "float32", "bfloat16", "float16"),
    )  # fmt: skip

    fine_tune: int | None = _flag(
        None, "fine-tuning", "last layers of the backbone trained after the head, or all (0; plain: all)", kind=int,
        **_range(0, ALL), words={"all": ALL},
    )  # fmt: skip
    fine_tune_epochs: int = _flag(10, "fine-tuning", "epochs of that (10)", kind=int, **_range(1, 100_000))
    fine_tune_lr: float | None = _flag(
        None, "fine-tuning", "its learning rate (a tenth of --lr)", kind=float, **_range(1e-9, 10)
    )

    flip: str = _flag(
        "none", "augmentation", "{choices}; both also turns by quarters (none)", kind=str,
        choices=("none", "horizontal", "both"),
    )  # fmt: skip
    rotation: float = _flag(0.0, "augmentation", "degrees either way (0)", kind=float, **_range(0, 180))
    zoom: tuple[float, float] = _flag(
        (1.0, 1.0), "augmentation", "factors (1 1)", kind=float, **_range(0.2, 5, pair=True)
    )
    shear: float = _flag(0.0, "augmentation", "degrees either way (0)", kind=float, **_range(0, 80))
    shift: float = _flag(0.0, "augmentation", "share of the side, either way (0)", kind=float, **_range(0, 0.5))
    brightness: tuple[float, float] = _flag(
        (1.0, 1.0), "augmentation", "factors (1 1)", kind=float, **_range(0.1, 5, pair=True)
    )
    contrast: float = _flag(0.0, "augmentation", "share either way (0)", kind=float, **_range(0, 0.9))
    colour: float = _flag(
        0.0, "augmentation", "share of pictures shown in grey; the others' channels mix a little (0)", kind=float,
        **_range(0, 1),
    )  # fmt: skip
    erasing: float = _flag(0.0, "augmentation", "share of pictures that lose a patch (0)", kind=float, **_range(0, 1))
    mixup: float = _flag(
        0.0, "augmentation", "alpha of two pictures mixed in one; 0: none (0)", kind=float, **_range(0, 2)
    )
    views: int = _flag(
        1, "augmentation", "augmented views of a picture to cache while the backbone is frozen (1: as it is)", kind=int,
        **_range(1, 64),
    )  # fmt: skip

    tune: int = _flag(
        0, "search", "trials of learning rate, head, dropout and decay (0)", kind=int, **_range(0, 10_000)
    )
    tune_size: int | None = _flag(None, "search", "another --size to tune at, in pixels", kind=int, **_range(32, 1024))

    certain: float | None = _flag(
        None,
        "evaluation",
        "precision wanted of answers called certain, such as 0.98",
        kind=float,
        **_range(0.5, 0.9999),
    )
    cache_gb: float = _flag(
        8.0, "where things go", "most that runs/.features may hold (8)", kind=float, **_range(0, 100_000)
    )

    def having(self, changes: dict[str, Any]) -> Settings:
        """Return a copy with these values replaced; names with - or _. Raise a UserError that says what is wrong."""
        specs = {spec.name: spec for spec in fields(self)}
        values = {}
        for key, value in changes.items():
            name = key.replace("-", "_")
            if name not in specs:
                similar = difflib.get_close_matches(name, specs, 1, 0)[0]
                raise UserError(f"{key!r} is no setting of a training; did you mean {similar!r}?")
            values[name] = check_value(specs[name], value)
        return replace(self, **values)

    @property
    def plain(self) -> bool:
        return self.backbone in PLAIN

    @property
    def resolved(self) -> Settings:
        """A copy with a value for each None that depends on the network."""
        # Values that depend on whether the network is plain.
        plain = self.plain
        defaults: dict[str, Any] = {
            "head": 0 if self.dropout is None else HEAD,
            "dropout": 0.2,
            "decay": 1e-3,
            "epochs": 18 if plain else 100,
            "batch_size": 8 if plain else 32,
            "lr": 3e-3 if plain else 1e-4,
            "fine_tune": ALL if plain else 0,
        }
        changes = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        if plain and self.weights == "imagenet":
            changes["weights"] = "none"  # nobody trained these on ImageNet
        # Values that depend on others.
        resolved = replace(self, **changes)
        if resolved.fine_tune_lr is None and resolved.lr is not None:
            resolved = replace(resolved, fine_tune_lr=resolved.lr / 10)
        if resolved.patience is None and not plain:
            resolved = replace(resolved, patience=10)
        return resolved

    @property
    def learns_nothing(self) -> str:
        """Say why a training with these settings learns nothing, and what to do instead; or nothing, where it does."""
        resolved = self.resolved
        if self.plain or resolved.weights != "none" or resolved.fine_tune == ALL:
            return ""
        return (
            f"{self.backbone} with --weights none stays as random as it is made, where it is frozen, and from random "
            "features a head learns next to nothing. --weights imagenet starts from trained ones, --fine-tune all "
            "trains the whole network, and --backbone cnn is one that is made to learn from nothing."
        )

    def shown(self) -> dict[str, Any]:
        """Return the settings for people: without those not set, and with words for numbers that have one."""
        values = asdict(self)
        for spec in fields(self):
            for word, number in spec.metadata.get("words", {}).items():
                if values[spec.name] == number:
                    values[spec.name] = word
        return {name: value for name, value in values.items() if value is not None}


def from_record(inputs: dict[str, Any]) -> Settings:
    """Return the settings as a run's about.json has them."""
    if "command" not in inputs and inputs.get("head") is None:  # of 1.0.0, where a dropout said nothing of the head
        inputs = {**inputs, "head": 0 if inputs.get("backbone") in PLAIN else HEAD}
    return Settings().having({name: inputs[name] for name in names() if inputs.get(name) is not None})


def check_value(spec: Field[Any], value: Any) -> Any:
    """Return the value in the setting's type, or raise a UserError that names the flag."""
    flag, metadata = flag_of(spec.name), spec.metadata
    value_type = metadata["kind"]
    # Yes or no.
    if value_type is bool:
        if not isinstance(value, bool):
            raise UserError(f"{flag} is true or false, not {value!r}.")
        return value
    # Two numbers.
    if metadata.get("pair"):
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise UserError(f"{flag} takes two numbers, low and high, not {value!r}.")
        low, high = (_number(flag, number, metadata) for number in value)
        if low > high:
            raise UserError(f"{flag} takes the lower number first, not {low:g} {high:g}.")
        return (low, high)
    # A text, perhaps of a pattern or one of some choices.
    if value_type is str:
        if not isinstance(value, str) or not value:
            raise UserError(f"{flag} takes a text, not {value!r}.")
        if "pattern" in metadata and not re.fullmatch(metadata["pattern"], value):
            raise UserError(f"{flag} {value!r} cannot be used: give one of letters, digits, '-', '_' and '.'.")
        if "choices" in metadata and value not in metadata["choices"]:
            similar = difflib.get_close_matches(value, metadata["choices"], 1, 0.3)
            hint = f"; did you mean {similar[0]}?" if similar else "."
            raise UserError(f"{flag} is one of {', '.join(metadata['choices'])}, not {value!r}{hint}")
        return value
    # One number.
    return _number(flag, value, metadata)


def _number(flag: str, value: Any, metadata: Any) -> Any:
    """Return `value` as a number in range, or raise a UserError that names the flag."""
    # Some numbers have a word, such as all.
    words, number_type = metadata.get("words", {}), metadata["kind"]
    if isinstance(value, str) and value in words:
        return words[value]
    # Read the number, without rounding.
    try:
        if isinstance(value, bool):
            raise ValueError
        number = number_type(value)
        if isinstance(value, float) and number != value:
            raise ValueError
    except (TypeError, ValueError):
        expected = "a whole number" if number_type is int else "a number"
        raise UserError(f"{flag} takes {expected}{''.join(f' or {word}' for word in words)}, not {value!r}.") from None
    # Refuse what is out of range.
    if not metadata["low"] <= number <= metadata["high"]:
        range_end = "" if metadata["high"] >= ALL else f" to {metadata['high']:g}"
        raise UserError(f"{flag} is from {metadata['low']:g}{range_end}, not {number:g}.")
    return number


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_flags(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Add a flag for each setting, and return the groups, by their headings. A flag that is not given sets nothing, so
    that a recipe's value stays."""
    groups = {name: parser.add_argument_group(name, text) for name, text in GROUPS.items()}
    for spec in fields(Settings):
        metadata = spec.metadata
        add = groups[metadata["group"]].add_argument
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": metadata["help"]}
        if metadata["kind"] is bool:
            add(flag_of(spec.name), action=argparse.BooleanOptionalAction, **options)
        elif metadata.get("pair"):
            add(flag_of(spec.name), nargs=2, metavar=("LOW", "HIGH"), **options)
        elif "choices" in metadata:
            options["help"] = metadata["help"].format(choices=", ".join(metadata["choices"]))
            add(flag_of(spec.name), metavar="NAME", **options)
        else:
            add(flag_of(spec.name), metavar=_METAVARS[metadata["kind"]], **options)
    return groups


def check(settings: Settings) -> None:
    """Refuse combinations of settings that contradict each other."""
    # The network's smallest size.
    for flag, size in (("--size", settings.size), ("--tune-size", settings.tune_size)):
        smallest = SMALLEST_SIZE.get(settings.backbone, 32)
        if size is not None and size < smallest:
            raise UserError(
                f"{settings.backbone} takes {smallest} pixels a side or more, not {size}: give a larger {flag}."
            )
    # Splits that leave nothing to train on.
    if settings.validation + settings.test > 0.8:
        raise UserError("--validation and --test together leave too little to train on: give at most 0.8.")
    # Tuning and cached views need a frozen backbone.
    resolved, defaults = settings.resolved, Settings()
    trains_whole = resolved.fine_tune == ALL and resolved.weights == "none"
    if trains_whole and (settings.tune or settings.views > 1):
        flag = "--tune" if settings.tune else "--views"
        raise UserError(
            f"{flag} is for a frozen backbone, and {settings.backbone} without weights is trained whole. Leave it out, "
            "or give --fine-tune 0 and --weights FILE."
        )
    # What is given is not tuned, and something has to be left.
    given = {name for name in TUNED if getattr(settings, name) is not None}
    if settings.tune and given | ({"dropout"} if settings.head == 0 else set()) == set(TUNED):
        raise UserError(
            "--tune has nothing to choose: --lr, --head, --dropout and --decay are given, and what is given stays. "
            "Leave one of them out, or --tune."
        )
    # Several views need something that varies them.
    variations = ("flip", "rotation", "zoom", "shear", "shift", "brightness", "contrast", "colour", "erasing")
    if settings.views > 1 and all(getattr(settings, name) == getattr(defaults, name) for name in variations):
        raise UserError("--views caches varied pictures, and nothing varies them: add --flip horizontal, say.")


def names() -> Iterator[str]:
    return (spec.name for spec in fields(Settings))


_METAVARS = {int: "N", float: "X", str: "TEXT"}
