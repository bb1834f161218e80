"""Fetch the pictures that a recipe was written for.

    python data/fetch.py                       # which there are, how large
    python data/fetch.py flowers               # → data/flowers/
    python data/fetch.py cars --out DIR        # somewhere else
    python data/fetch.py food --archive FILE   # downloaded by hand

A download that broke off goes on where it stopped, and data/<name> is there whole or not at all. Kaggle's own need an
account there: KAGGLE_USERNAME and KAGGLE_KEY, or ~/.kaggle/kaggle.json, or KAGGLE_API_TOKEN, as Kaggle gives them out.

Not tried where this was written, for want of the internet: the addresses, and what lies in the archives. Both are as
others report them. All else is tried against a server of the tests.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loupe.cli import Parser, run_script
from loupe.errors import UserError
from loupe.training.data.download import download, partial_of
from loupe.training.data.unpack import Places, unpack

DATA_FOLDER = Path("data")
KAGGLE = "https://www.kaggle.com/api/v1"
FOOD = (
    "cheesecake", "chicken_curry", "dumplings", "fish_and_chips", "french_fries", "fried_rice", "ice_cream",
    "omelette", "pizza", "ramen", "sushi", "tacos",
)  # fmt: skip
CARS = (
    "Audi TT RS Coupe 2012", "BMW M3 Coupe 2012", "Ford Mustang Convertible 2007", "Jeep Wrangler SUV 2012",
    "smart fortwo Convertible 2012",
)  # fmt: skip
CARS_EACH = {"train": 28, "validation": 7}


@dataclass(frozen=True)
class Source:
    description: str
    url: str
    page: str  # for people: licence, rules, download by hand
    megabytes: int  # about, to download
    pictures: int  # as others counted them
    place: Callable[[Sequence[str]], Places]
    folder: str = ""  # below data/, if it is not the source's name
    kaggle: bool = False
    has_rules: bool = False  # only for users who accepted rules
    size: int = 0  # bytes, if the archive never changes
    sha256: str = ""


def below(folder: str, *wanted: str) -> Callable[[Sequence[str]], Places]:
    """Return a `place` function for all files in `folder` of the archive, or only for the folders and files in
    `wanted`."""

    def place(names: Sequence[str]) -> Places:
        names_inside = {name: name.removeprefix(folder) for name in names if name.startswith(folder)}
        return {name: target for name, target in names_inside.items() if not wanted or target.split("/")[0] in wanted}

    return place


def cars(names: Sequence[str]) -> Places:
    """Place the first pictures of five models, from both halves of the Stanford Cars, which each count from 00001."""
    places = {}
    for model in CARS:
        remaining = iter(sorted(name for name in names if f"/{model}/" in name))
        for split, count in CARS_EACH.items():
            for name, _ in zip(remaining, range(count), strict=False):
                path = PurePosixPath(name)
                places[name] = f"{split}/{model}/{path.parts[-3]}-{path.name}"
    return places


SOURCES = {
    "tires": Source(
        "tires, cracked or normal",
        f"{KAGGLE}/datasets/download/jehanbhathena/tire-texture-image-recognition",
        "https://www.kaggle.com/datasets/jehanbhathena/tire-texture-image-recognition",
        350, 1028, below("Tire Textures/", "training_data", "testing_data"),
        folder="tire-textures", kaggle=True,  # data/tires are the drawn ones
    ),
    "cars": Source(
        "five models of the Stanford Cars, 35 pictures each",
        f"{KAGGLE}/datasets/download/jutrera/stanford-car-dataset-by-classes-folder",
        "https://www.kaggle.com/datasets/jutrera/stanford-car-dataset-by-classes-folder",
        2000, len(CARS) * sum(CARS_EACH.values()), cars, kaggle=True,
    ),
    "food": Source(
        "twelve dishes of Food-101",
        "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        4996, 12_000, below("food-101/images/", *FOOD), size=4_996_278_331,
        sha256="d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4",
    ),
    "kitchenware": Source(
        "Kaggle's competition: cups, forks, glasses, knives, plates, spoons",
        f"{KAGGLE}/competitions/data/download-all/kitchenware-classification",
        "https://www.kaggle.com/competitions/kitchenware-classification/data",
        1500, 9367, below("", "images", "train.csv", "test.csv", "sample_submission.csv"), kaggle=True, has_rules=True,
    ),
    "flowers": Source(
        "five flowers, TensorFlow's flower_photos",
        "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
        "https://www.tensorflow.org/datasets/catalog/tf_flowers",
        229, 3670, below("flower_photos/"), size=228_813_984,
        sha256="4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
    ),
    "clothing": Source(
        "ten kinds of clothes (no recipe: train.py's defaults)",
        "https://github.com/alexeygrigorev/clothing-dataset-small/archive/refs/heads/master.zip",
        "https://github.com/alexeygrigorev/clothing-dataset-small",
        110, 3781, below("clothing-dataset-small-master/", "train", "validation", "test"),
    ),
}  # fmt: skip


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(SOURCES), help="which pictures")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to make (data/<name>)")
    parser.add_argument("--archive", type=Path, metavar="FILE", help="unpack this one, and download nothing")
    args = parser.read()
    if args.name is None:
        for name, source in SOURCES.items():
            print(f"{name:<12} {source.megabytes:>5} MB  {source.description}\n{source.page:>{22 + len(source.page)}}")
        return 0
    source = SOURCES[args.name]
    out = args.out or DATA_FOLDER / (source.folder or args.name)
    count = fetch(source, out, args.archive)
    recipe = "" if args.name == "clothing" else f"--recipe {args.name} "
    print(f"{out}: {count} pictures. Next: python train.py {recipe}{out}")
    return 0


def fetch(source: Source, out: Path, archive: Path | None = None) -> int:
    """Fetch the pictures into `out`, completely or not at all, and return how many there are."""
    # Refuse a folder that is there already.
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: move it away to fetch it anew, or name another place by --out.")
    # Download, unless the archive was put there by hand, and unpack.
    download_path = out.with_name(out.name + (".tgz" if source.url.endswith((".tgz", ".tar.gz")) else ".zip"))
    is_ours = (
        archive is None and not download_path.exists()
    )  # an archive that was put there by hand is used and left there
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if is_ours:
            download_archive(source, download_path)
        names = check_and_unpack(source, out, archive or download_path)
        if is_ours:
            download_path.unlink()
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(kept(download_path)) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"The disk of {out.parent} is full: free some, then run this again.") from error
        raise UserError(f"{error.filename or out}: {error.strerror or error}.") from error
    # Say so if there are not as many as others counted.
    count = sum(name.lower().endswith((".jpg", ".jpeg", ".png")) for name in names)
    if count != source.pictures:
        print(f"note: {count} pictures, where others counted {source.pictures}: see {source.page}", file=sys.stderr)
    return count


def kept(download_path: Path) -> str:
    """Say after Ctrl-C what there is of the download."""
    for path in (download_path, partial_of(download_path)):
        if path.is_file():
            return f"{path.stat().st_size / 1e6:.1f} MB are kept in {path}: the same command goes on from there"
    return "nothing is kept: the same command begins again"


def download_archive(source: Source, target: Path) -> None:
    key = credentials() if source.kaggle else ""
    if source.has_rules and not key:
        raise UserError(
            "Kaggle wants to know who asks: make a key in its settings, set KAGGLE_USERNAME and KAGGLE_KEY or save "
            f"~/.kaggle/kaggle.json, and accept the rules on {source.page}. {advice_by_hand(source, target)}"
        )
    try:
        download(source.url, target, source.size, key)
    except UserError as error:
        hint = f" Is the key right, and were the rules accepted on {source.page}?" if " 403 " in str(error) else ""
        raise UserError(f"{error}{hint} {advice_by_hand(source, target)}") from error


def advice_by_hand(source: Source, target: Path) -> str:
    address = source.page if source.kaggle else source.url
    return f"By hand: download it from {address}, save it as {target}, and run this again."


def check_and_unpack(source: Source, out: Path, archive: Path) -> list[str]:
    if source.sha256:
        with archive.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != source.sha256:
                raise UserError(f"{archive} is not the archive that was known: remove it, and look at {source.page}.")
    return unpack(archive, out, source.place)


def credentials() -> str:
    """Return the Authorization header for Kaggle, or "" if there is no key."""
    if token := os.environ.get("KAGGLE_API_TOKEN"):
        return f"Bearer {token}"
    name, key = os.environ.get("KAGGLE_USERNAME"), os.environ.get("KAGGLE_KEY")
    file = Path(os.environ.get("KAGGLE_CONFIG_DIR", Path.home() / ".kaggle")) / "kaggle.json"
    if not (name and key) and file.is_file():
        try:
            stored = json.loads(file.read_text())
            name, key = str(stored["username"]), str(stored["key"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is not as Kaggle gives it out: make a new one in its settings.") from error
    return "Basic " + base64.b64encode(f"{name}:{key}".encode()).decode() if name and key else ""


if __name__ == "__main__":
    run_script(main)
