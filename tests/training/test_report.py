"""The report: what it says, that it stands alone, and how it looks in a real Chromium."""

from __future__ import annotations

import io
import json
import re
import shutil
import warnings
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from loupe.training.data.dataset import Dataset, Source, read
from loupe.training.data.doctor import examine
from loupe.training.evaluate.calibrate import Calibration
from loupe.training.evaluate.metrics import Evaluation, Predictions, softmax, wilson
from loupe.training.report import sections
from loupe.training.report.cases import cases
from loupe.training.report.figures import curves, first_epoch, svg
from loupe.training.report.render import write
from loupe.training.report.story import Story
from loupe.training.report.text import (
    clean,
    distinct_names,
    duration,
    number,
    percent,
    relative_path,
    shortened,
    text_width,
)
from tests.support.pictures import picture

HOSTILE = (
    "<script>document.title='taken'<",  # a folder's name has no slash
    '"><img src=x onerror=alert(1)>',
    "🍕 pizza",
    "日本語",
    "$5$ and \\frac{",
    "{{ 7 * 7 }}",
    "a very long name " * 12,
    "two\nlines",
    "turned \u202egnp.exe",
    "\u0627\u0644\u0642\u0637\u0637",
)


def dataset(folder: Path, labels: tuple[str, ...], each: int = 12) -> Dataset:
    for number_, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for count in range(each):
            wide = picture(90, 60, seed=number_ * 1000 + count)
            (wide.rotate(90, expand=True) if count % 2 else wide).save(folder / label / f"{count}.png")
    return read(Source(folder), 32, 32, seed=42, spill=folder, fewest=2, test_share=0.4)


def history(epochs: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "stage": "head" if epoch < epochs / 2 else "fine-tune", "epoch": epoch, "loss": 2 / (epoch + 1),
            "accuracy": epoch / epochs, "val_loss": 1 + abs(epoch - epochs / 2), "val_accuracy": 0.5 + epoch / 20,
        }
        for epoch in range(epochs)
    ]  # fmt: skip


def trials() -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    solved = {
        "number": 0, "state": "logistic", "lr": 0.0, "head": 0, "dropout": 0.0, "decay": 0.0,
        "val_loss": 0.3, "val_accuracy": 0.9, "curve": [0.3], "seconds": 4.0,
    }  # fmt: skip
    return [solved] + [
        {
            "number": count + 1, "state": "pruned" if count % 4 == 3 else "complete", "decay": 1e-4,
            "lr": float(10 ** rng.uniform(-4, -1)), "head": int(rng.choice([0, 64, 256])), "dropout": count % 3 / 10,
            "val_loss": float(rng.uniform(0.4, 0.9)), "val_accuracy": 0.8, "curve": [1.0], "seconds": 0.4,
        }
        for count in range(12)
    ]  # fmt: skip


def story(data: Dataset, skill: float = 1.5, **more: Any) -> Story:
    """A story as a training writes it. The answers are random, and better than chance by `skill`."""
    rng = np.random.default_rng(7)
    rows = data.test if len(data.test) else data.validation
    logits = rng.normal(size=(len(rows), len(data.labels))) + skill * np.eye(len(data.labels))[data.classes[rows]]
    predictions = Predictions(rows, 3 * logits, logits, softmax(logits), rng.random(len(rows)))
    entries: dict[str, Any] = {
        "name": "sample", "dataset": data, "predictions": predictions, "split": "test",
        "model": {"backbone": "cnn", "weights": "none", "parameters": 123_456}, "history": history(),
        "seconds": {"reading": 1.5, "training": 251.0}, "command": "python train.py data/sample --epochs 6",
        "settings": {"epochs": 6, "lr": 1e-4, "class_weights": False}, "hardware": {"processor": "two cores"},
        "versions": {"tensorflow": "2.20.0"}, "heat": lambda pixels: rng.random((len(pixels), 4, 4)),
    }  # fmt: skip
    return Story(**{**entries, **more})


class Page(HTMLParser):
    """The parts of a written report."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.source = (folder / "report.html").read_text(encoding="utf-8")
        self.text, self.images, self.tags, self.headings = "", [], [], []  # type: ignore[var-annotated]
        self.feed(re.sub("</?bdi[^>]*>", "", self.source))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] not in ("style", "script"):
            self.text += " " + data
        if self.tags and self.tags[-1] in ("h2", "h3"):
            self.headings.append(data.strip())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return dataset(tmp_path_factory.mktemp("data"), ("cracked", "normal", "worn"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return dataset(tmp_path_factory.mktemp("hostile"), HOSTILE, 8)


def plain(text: str) -> str:
    return re.sub(r"[\s\u202f]+", " ", text)


@pytest.fixture(scope="module")
def full(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Story, Path]:
    folder = tmp_path_factory.mktemp("full")
    views = np.random.default_rng(2).integers(0, 256, (3, 5, 32, 32, 3))
    suspects = [(int(data.train[0]), 2, 0.96)]
    fitted = Calibration(3.0, 0.7, 0.05, notes=["Fitted on few pictures."])
    reported = story(
        data, calibration=fitted, augmented=views, trials=trials(), label_errors=suspects, notes=["Resumed."]
    )
    write(folder, reported)
    return reported, folder


def test_the_headline_gives_the_accuracy_its_interval_and_what_was_measured(full: tuple[Story, Path]) -> None:
    reported, folder = full
    data, text = reported.dataset, plain(Page(folder).text)
    evaluation = Evaluation.of(reported.predictions, data)
    low, high = wilson(int(evaluation.right.sum()), len(data.test))
    assert plain(f"{percent(evaluation.accuracy)} accuracy, 95 % interval {percent(low)} to {percent(high)}") in text
    assert f"Measured on {len(data.test)} test pictures" in text
    assert "3 classes · cnn from random weights, 32×32 px · 4 min 12 s in all" in text


def test_every_part_has_its_heading_and_its_figure_beside(full: tuple[Story, Path]) -> None:
    _, folder = full
    page = Page(folder)
    for heading in ("Curves", "Classes", "Trust", "Worst mistakes", "Least certain", "Augmentation", "Data", "Tuning"):
        assert heading in page.headings
    assert {"Run", "Model", "Time", "Hardware", "Versions", "Settings"} <= {*page.headings}
    text = plain(page.text)
    assert "1 label may be wrong; Data shows which." in text, "at the page's head"
    assert "1 label that may be wrong" in text
    assert "(4 % likely), looks like “worn”" in text
    assert "About 0 of the 1 are expected to be right all the same." in text
    for words in ("Fitted on few pictures.", "Resumed.", "python train.py data/sample", "123,456"):
        assert words in text, words
    assert "12 trials, 3 of them cut short" in text
    assert re.search(r"\b0 – – – – 0\.3000 90(\.0)? % logistic", text), "the first row, which has no settings"
    for name in ("curves", "confusion", "reliability", "trials"):
        with Image.open(folder / f"{name}.png") as image:
            assert image.width > 400
    assert not list(folder.glob(".*"))


def test_what_was_not_done_leaves_its_part_out(data: Dataset, tmp_path: Path) -> None:
    flawless = story(data, skill=50.0, history=[], heat=None, versions={})
    write(tmp_path, flawless)
    page = Page(tmp_path)
    gone = {"Curves", "Worst mistakes", "Augmentation", "Tuning", "Versions", "Most often confused"}
    assert not gone & {*page.headings}
    assert "No mistake on the measured pictures" in page.text
    assert "Nothing to report" in page.text
    assert not (tmp_path / "trials.png").exists()


def test_where_no_label_looks_wrong_the_most_doubtful_are_there_to_look_at(data: Dataset, tmp_path: Path) -> None:
    write(tmp_path, story(data, doubted=[(int(row), 2) for row in data.train[:2]]))
    text = plain(Page(tmp_path).text)
    assert "2 labels to look at first" in text
    assert "if some are wrong, they are likely among these" in text
    assert text.count(", looks like “worn”") == 2
    assert "may be wrong" not in text


def test_the_doctors_findings_are_shown_with_copies_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    dataset(folder, ("a", "b"), 30)
    for number_ in range(14):
        shutil.copy(folder / "a" / f"{number_}.png", folder / "a" / f"copy {number_}.png")
    shutil.copy(folder / "a" / "29.png", folder / "b" / "other label.png")
    Image.new("RGB", (60, 60), (2, 2, 3)).save(folder / "b" / "night.png")
    for number_ in range(23):
        (folder / "b" / f"broken {number_}.png").write_bytes(b"")
    data = read(Source(folder), 32, 32, seed=42, spill=folder)
    write(tmp_path, story(data, findings=examine(data)))
    page = Page(tmp_path)
    text = plain(page.text)
    assert "23 files left out: empty (0 bytes)" in page.headings
    assert "b/broken 0.png: empty (0 bytes)" in text
    assert "… and 3 more; all are in dataset.json" in text  # of 23 files, 20 are listed
    assert "… and 2 more; all are in dataset.json" in text  # of 14 sets of copies, 12 are
    shown = {image["alt"] for image in page.images}
    assert {"a/29.png", "b/other label.png", "b/night.png", "a/0.png", "a/copy 0.png"} <= shown
    assert text.index("under two labels") < text.index("more than once")


def test_without_test_pictures_it_says_that_validation_measured_and_chose(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", ("a", "b"))
    data = replace(data, test=data.test[:0])
    write(tmp_path, story(data, split="validation"))
    text = plain(Page(tmp_path).text)
    assert f"Measured on {len(data.validation)} validation pictures ; they also chose the epoch" in text


def test_hostile_class_names_are_text_everywhere_and_no_glyph_is_complained_of(
    hostile: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path, story(hostile, skill=0.2))
    assert capfd.readouterr().err == ""
    page = Page(tmp_path)
    assert page.tags.count("script") == 1  # the page's own
    assert all(image["src"].startswith("data:image/") for image in page.images)
    for label in HOSTILE[:6]:
        assert label in page.text
    assert "two\nlines" not in page.source


def test_a_file_name_that_is_no_text_and_a_picture_that_is_gone_do_no_harm(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", ("a", "b"))
    for count, row in enumerate(data.test):
        old = data.pictures[row]
        path = Path(f"{old.file.path}-\udcff")
        if count % 2:
            old.file.path.rename(path)
        data.pictures[row] = replace(old, file=replace(old.file, path=path))
    write(tmp_path, story(data))
    page = Page(tmp_path)
    assert len(page.images) >= len(data.test)
    assert ".png-�" in page.text


@pytest.mark.slow
def test_two_hundred_classes_and_thousands_of_mistakes_stay_below_five_megabytes(tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(4), tmp_path / "data"
    labels = tuple(f"class {count:03d}" for count in range(200))
    small = dataset(folder, ("a", "b"), 40)
    for old in small.pictures:  # noise is the most that a thumbnail can weigh
        Image.fromarray(rng.integers(0, 256, (300, 300, 3)).astype(np.uint8)).save(old.file.path)
    rows = np.resize(np.arange(len(small.pictures)), 4000)
    data = replace(
        small, labels=labels, pictures=[small.pictures[row] for row in rows], pixels=small.pixels[rows],
        classes=rng.integers(0, 200, 4000), test=np.arange(4000),
    )  # fmt: skip
    views = rng.integers(0, 256, (9, 16, 64, 64, 3))
    write(tmp_path, story(data, skill=2.0, augmented=views, trials=trials() * 9))
    page = Page(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    assert re.search(r"Shown are 24, and [\d,]+ more are not", page.text)
    assert page.text.count("class 150") >= 2


def test_a_report_that_cannot_be_written_leaves_the_last_one_as_it_was(data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("the last one")
    with pytest.raises(KeyError):
        write(tmp_path, story(data, model={}))
    assert (tmp_path / "report.html").read_text() == "the last one"
    assert not list(tmp_path.glob(".part*"))


def test_the_numbers_are_those_of_scikit_learn(data: Dataset) -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    evaluation = Evaluation.of(story(data).predictions, data)
    assert (evaluation.confusion == confusion_matrix(evaluation.truth, evaluation.guess, labels=range(3))).all()
    precision, recall, f1, support = precision_recall_fscore_support(
        evaluation.truth, evaluation.guess, labels=range(3)
    )
    mine = {row.label: row for row in evaluation.per_class()}
    for count, label in enumerate(data.labels):
        row = mine[label]
        assert (row.precision or 0, row.recall, row.f1) == pytest.approx((precision[count], recall[count], f1[count]))
        assert row.support == support[count]
    scores = [row.f1 or 0 for row in evaluation.per_class()]
    assert scores == sorted(scores)


def test_the_interval_of_a_share_is_wilsons() -> None:
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert wilson(81, 100) == pytest.approx((0.7222, 0.8749), abs=1e-4)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (percent(0.9114), "91.1 %"), (percent(1), "100 %"), (percent(0.99999), "> 99.9 %"), (percent(1e-5), "< 0.1 %"),
        (percent(None), "–"), (duration(3.21), "3.2 s"), (duration(59.9), "1 min 00 s"), (duration(7322), "2 h 02 min"),
        (number(21_075_498), "21,075,498"), (number(1e-4), "1e-4"), (number(3.2e-5), "3.2e-5"), (number(None), "–"),
        (number((0.9, 1.1)), "0.9, 1.1"), (number(np.float32(0.5)), "0.5"), (number(False), "no"),
        (percent(0.0), "0 %"), (clean("a\u202eb\u2067c\u2069"), "abc"), (shortened("日" * 20), "日日日日日…日日日日日"),
        (shortened("x" * 10 + "y" * 20), "xxxxxxxxxx…yyyyyyyyyy"),
        (relative_path(Path("/data/a/1.png"), Path("/data")), "a/1.png"),
        (relative_path(Path("/home/someone/secret/b/a/1.png"), Path("/data")), "b/a/1.png"),
    ],
)  # fmt: skip
def test_numbers_and_names_are_written_as_people_do(written: str, expected: str) -> None:
    assert plain(written) == expected


@pytest.mark.parametrize(
    "pattern",
    ["class number {} of a data set with long names", "{} of a data set with long names", "the same beginning {}",
     "日本語日本語日本語日本語 {} 日本語日本語日本語日本語", "{}", "\u202e" * 9 + "same"],
)  # fmt: skip
def test_shortened_names_stay_different(pattern: str) -> None:
    labels = [pattern.format(count) for count in range(60)]
    names = distinct_names(labels)
    assert len({*names}) == 60
    assert all(len(name) <= 22 for name in names)
    assert "same" in pattern or all(str(count) in name for count, name in enumerate(names))


def test_wide_letters_are_given_more_room() -> None:
    assert (
        text_width("i" * 9) < text_width("I" * 9) < text_width("W" * 9) <= text_width("日" * 9) < text_width("🍕" * 9)
    )


def answered(data: Dataset, guesses: list[int]) -> Story:
    """A story of a model that answered the first test pictures so."""
    logits = np.eye(len(data.labels))[guesses] * 4
    rows = data.test[: len(guesses)]
    return story(data, predictions=Predictions(rows, logits, logits, softmax(logits), None))


def in_short(reported: Story) -> list[str]:
    return [
        plain(str(line)) for line in sections.brief(reported, Evaluation.of(reported.predictions, reported.dataset))
    ]


def test_a_model_that_learnt_nothing_is_said_so_first_and_what_it_never_guessed_is_marked(
    data: Dataset, tmp_path: Path
) -> None:
    reported = answered(data, [0] * len(data.test))
    share = plain(percent(float((data.classes[data.test] == 0).mean())))
    first, *others = in_short(reported)
    assert first.startswith(f"It is no better than always saying the commonest class ({share} right against ")
    assert not any("no better" in line for line in in_short(story(data, skill=9.0)))
    assert any("never guessed" in line for line in others if line.startswith("Weakest class"))
    write(tmp_path, reported)
    assert Page(tmp_path).source.count('<abbr title="never guessed">–</abbr>') == 2


def test_the_weakest_class_is_named_only_where_there_are_pictures_to_tell(data: Dataset) -> None:
    truth = data.classes[data.test]
    few = [int(row) for n in range(3) for row in data.test[truth == n][: 3 if n == 2 else 99]]
    few_data = replace(data, test=np.array(few))
    truth = data.classes[few]
    wrong_once = [int(n) for n in truth]
    wrong_once[0] = 1
    sentences = in_short(answered(few_data, wrong_once))
    assert "A single mistake: “<bdi>cracked</bdi>” taken for “<bdi>normal</bdi>”." in sentences
    weakest = [line for line in sentences if line.startswith("Weakest class")]
    assert weakest[0].startswith("Weakest class of those with at least 5 pictures: “<bdi>")
    never = [0 if n == 2 else int(n) for n in truth]
    assert not any("Weakest" in line for line in in_short(answered(few_data, never)))


def test_pairs_confused_only_once_each_are_no_table(data: Dataset, tmp_path: Path) -> None:
    guesses = [int(n) for n in data.classes[data.test]]
    first = [guesses.index(n) for n in range(3)]
    for place, guess in zip(first, (1, 2, 0), strict=True):
        guesses[place] = guess
    reported = answered(data, guesses)
    assert "Mistakes are scattered" in in_short(reported)[0]
    write(tmp_path, reported)
    assert "Most often confused" not in Page(tmp_path).headings


def test_the_time_in_all_is_the_whole_trainings_where_it_is_known(data: Dataset, tmp_path: Path) -> None:
    write(tmp_path, story(data, total=300.0))
    text = plain(Page(tmp_path).text)
    assert "5 min 00 s in all" in text
    assert re.search(r"the rest: loading, writing 48 s", text)


@pytest.mark.parametrize(("skill", "shown"), [(50.0, 6), (1.5, None)])
def test_answers_that_are_sure_are_not_among_the_uncertain_but_for_a_few(
    data: Dataset, skill: float, shown: int | None
) -> None:
    told = story(data, skill=skill)
    evaluation = Evaluation.of(told.predictions, data)
    doubtful = cases(told, evaluation)["doubtful"]
    sure = int((evaluation.confidence >= 0.95).sum())
    assert len(doubtful) == (shown or min(24, len(evaluation.rows) - sure - int((~evaluation.right).sum())))


def test_epochs_have_the_numbers_that_the_terminal_showed(data: Dataset) -> None:
    logistic = {**history(1)[0], "stage": "logistic", "val_loss": 2.0}
    rows = [logistic, *history(6)]
    assert (first_epoch(history(6)), first_epoch(rows)) == (1, 0)
    shown = sections.curves(story(data, history=rows))
    assert shown and shown["summary"].startswith("epoch 4 of 6,")
    shown = sections.curves(story(data, history=[{**logistic, "val_loss": 0.1}, *history(6)]))
    assert shown and shown["summary"].startswith("the logistic regression, validation loss 0.100")


def test_ticks_are_whole_epochs_and_percentages_that_differ() -> None:
    for epochs, flat in ((1, False), (3, True), (40, True)):
        rows = history(epochs)
        for count, row in enumerate(rows if flat else []):
            row["accuracy"] = row["val_accuracy"] = 0.02 + count * 0.01 / epochs
        ticks = re.findall(r"<text[^>]*>([^<]*)</text>", svg(curves(rows, "accuracy")))
        shares = [tick for tick in ticks if tick.endswith("%")]
        assert len(shares) == len({*shares}) > 2
        assert [tick for tick in ticks if re.fullmatch(r"\d+\.\d+", tick)] == []
        assert epochs > 1 or [tick for tick in ticks if tick.isdigit()] == ["1"]


def test_nothing_in_a_name_turns_the_text_around_and_long_ones_are_whole_on_hovering(
    hostile: Dataset, tmp_path: Path
) -> None:
    labels = tuple("turned \u202egnp.exe" if label.startswith("turned") else label for label in hostile.labels)
    write(tmp_path, story(replace(hostile, labels=labels), skill=0.2))
    source = Page(tmp_path).source
    assert "\u202e" not in source
    assert "<bdi>turned gnp.exe</bdi>" in source
    assert '<p class="path"><bdi dir="ltr" title="' in source
    long = "a very long name " * 12
    assert f'<bdi title="{long}">' in source
    assert f">{long}" not in re.sub('<title>.*?</title>|<p class="path">.*?</p>', "", source)


@dataclass
class Opened:
    """A report in Chromium, and what it said and asked for."""

    page: Any
    said: list[str]
    asked: list[str]


def opened(chromium: Browser, folder: Path, width: int, **how: Any) -> Opened:
    page = chromium.new_page(viewport={"width": width, "height": 900}, **how)
    here = Opened(page, [], [])
    page.on("console", lambda message: here.said.append(message.text))
    page.on("pageerror", lambda error: here.said.append(str(error)))
    page.on("request", lambda request: here.asked.append(request.url))
    page.goto((folder / "report.html").as_uri())
    return here


@pytest.fixture(scope="module")
def written(hostile: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    views = np.random.default_rng(2).integers(0, 256, (2, 8, 32, 32, 3))
    suspects = [(int(row), 0, 0.9) for row in hostile.train[:3]]
    fitted = Calibration(3.0, 0.7, 0.05)
    write(folder, story(hostile, 1.0, calibration=fitted, augmented=views, trials=trials(), label_errors=suspects))
    return folder


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        *((390, "light"), (1440, "dark")),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((390, "dark"), (1440, "light"))),
    ],
)
def test_in_a_browser_it_fits_asks_nobody_and_shows_every_picture(
    chromium: Browser, written: Path, width: int, scheme: str
) -> None:
    here = opened(chromium, written, width, color_scheme=scheme)
    here.page.wait_for_function("[...document.images].every((image) => image.complete)")
    assert here.page.evaluate("[...document.images].filter((image) => !image.naturalWidth).length") == 0
    assert here.page.evaluate("document.documentElement.scrollWidth") <= width
    assert [url for url in here.asked if not url.startswith(("data:", written.as_uri()))] == []
    assert here.said == []
    assert here.page.title().startswith("sample")
    ink, ground = json.loads(
        here.page.evaluate(
            "JSON.stringify(['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name]))"
        )
    )
    assert (sum(map(int, re.findall(r"\d+", ink))) > sum(map(int, re.findall(r"\d+", ground)))) == (scheme == "dark")
    here.page.close()


@pytest.mark.parametrize("width", [390, pytest.param(1440, marks=pytest.mark.slow)])
def test_a_picture_of_the_whole_page_has_every_thumbnail(chromium: Browser, written: Path, width: int) -> None:
    page = opened(chromium, written, width).page
    page.add_style_tag(content=".heat { visibility: hidden }")
    boxes = page.evaluate(
        "[...document.querySelectorAll('.frame img:not(.heat), .augmented img')].map((image) => "
        "{ const b = image.getBoundingClientRect(); return [b.left, b.top + scrollY, b.right, b.bottom + scrollY] })"
    )
    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as image:
        seen = [
            np.asarray(image.convert("L").crop((box[0], box[1], box[2], box[3]))) for box in boxes if box[2] < width
        ]
    assert len(seen) > 20
    assert min(shown.std() for shown in seen) > 3
    page.close()


def test_names_of_wide_letters_are_not_cut_off(chromium: Browser, data: Dataset, tmp_path: Path) -> None:
    write(tmp_path, story(replace(data, labels=("W" * 40, "日" * 40, "M@" * 5 + "🍕" * 20))))
    page = opened(chromium, tmp_path, 1440).page
    lefts = page.evaluate(
        "(() => { const all = document.querySelector('.matrix svg'), edge = all.getBoundingClientRect().left;"
        "return [...all.querySelectorAll('text')].map((text) => text.getBoundingClientRect().left - edge) })()"
    )
    assert min(lefts) >= 0
    page.close()


def test_the_table_of_classes_fits_a_telephone(chromium: Browser, written: Path) -> None:
    """Its last column was out of sight at 390 px."""
    page = opened(chromium, written, 390).page
    table = page.locator("#classes .tall")
    assert table.evaluate("(box) => box.scrollWidth - box.clientWidth") == 0
    page.close()


def test_the_matrix_has_room_for_its_leaning_names_and_no_more(chromium: Browser, full: tuple[Story, Path]) -> None:
    page = opened(chromium, full[1], 1440).page
    spare = page.evaluate(
        "(() => { const all = document.querySelector('.matrix svg'), edge = all.getBoundingClientRect().right;"
        "return edge - Math.max(...[...all.querySelectorAll('text, .lines')].map((one) =>"
        " one.getBoundingClientRect().right)) })()"
    )
    assert 0 <= spare <= 24
    page.close()


def test_the_name_of_a_file_takes_one_line_and_is_whole_on_hovering(
    chromium: Browser, tmp_path: Path, data: Dataset
) -> None:
    long = Path("worn/0e240297-2265-411e-b386-cb59a44f98ae.png")
    pictures = [replace(one, file=replace(one.file, path=data.root / long)) for one in data.pictures]
    write(tmp_path, story(replace(data, pictures=pictures)))
    page = opened(chromium, tmp_path, 1440).page
    name = page.locator("#mistakes .path").first
    assert name.inner_text() == name.locator("bdi").get_attribute("title") == long.as_posix()
    height, line = name.evaluate("(p) => [p.clientHeight, parseFloat(getComputedStyle(p).lineHeight)]")
    assert height < 1.5 * line
    page.close()


def test_in_a_browser_heat_maps_can_be_hidden_and_tables_sorted(chromium: Browser, written: Path) -> None:
    page = opened(chromium, written, 1440).page
    heat = page.locator(".heat").first
    assert heat.is_visible()
    page.uncheck("#heat-on")
    assert not heat.is_visible()
    table = page.locator("#classes table.sortable")
    table.get_by_role("button", name="recall").click()
    column = [float(text) for text in table.locator("tbody tr td:nth-child(3)").all_inner_texts()]
    assert column == sorted(column)
    page.close()


def test_without_javascript_nothing_is_missing(chromium: Browser, written: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((written / "report.html").as_uri())
    assert page.locator("section").count() == 9
    assert page.locator(".heat").first.is_visible()
    context.close()
