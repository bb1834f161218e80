"""The report of a run: report.html, which needs nothing beside it, and its figures as PNGs for other uses.

    write(Path("runs/tires"), Story(name="tires", dataset=data, predictions=predictions, …))

It says what to look at, in sentences; what was not done (no tuning, no calibration) leaves its section out. Each file
is written beside and renamed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from loupe.training.evaluate.metrics import Judged
from loupe.training.report import cases, figures, findings, sections, text
from loupe.training.report.story import Story


def write(folder: Path, story: Story) -> None:
    """report.html, curves.png, confusion.png, reliability.png and, where settings were searched, trials.png."""
    judged = Judged.of(story.predictions, story.dataset)
    trust = sections.trust(story, judged)
    tuning = sections.tuning(story)
    if story.history:
        with _beside(folder / "curves.png") as part:
            figures.save(part, [figures.curves(story.history, name) for name in ("loss", "accuracy")])
    with _beside(folder / "confusion.png") as part:
        figures.save_confusion(part, judged)
    with _beside(folder / "reliability.png") as part:
        figures.save(part, [panel.draw for panel in trust.panels], across=3)
    if tuning:
        with _beside(folder / "trials.png") as part:
            figures.save(part, [panel.draw for panel in tuning.panels])
    html = _page().render(
        story=story,
        judged=judged,
        head=sections.headline(story, judged),
        brief=sections.brief(story, judged),
        curves=sections.curves(story),
        confusion=sections.confusion(judged),
        trust=trust,
        tuning=tuning,
        cases=cases.cases(story, judged),
        sheet=cases.sheet(story),
        findings=findings.told(story),
        tables=sections.tables(story),
    )
    with _beside(folder / "report.html") as part:
        part.write_text(html, encoding="utf-8", errors="replace")  # a file's name may hold what UTF-8 cannot


def _page() -> Template:
    home = Path(__file__).parent
    page = Environment(
        loader=FileSystemLoader(home), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    page.filters.update(percent=text.percent, duration=text.duration, number=text.number, clean=text.clean)
    page.filters["path"] = lambda path: text.named(path, text.shortened(path, text.PATH))
    return page.get_template("report.html.j2")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
