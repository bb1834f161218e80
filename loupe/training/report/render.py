"""Write the report of a run: report.html, which needs no other file, and its figures as PNGs for other uses.

    write(Path("runs/tires"), Story(name="tires", dataset=data, predictions=predictions, …))

The report says in sentences what to look at. Steps that were not done (no tuning, no calibration) leave their sections
out. Each file is written beside and renamed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from loupe.training.evaluate.metrics import Evaluation
from loupe.training.report import cases, figures, findings, sections, text
from loupe.training.report.story import Story


def write(folder: Path, story: Story) -> None:
    """Write report.html, curves.png, confusion.png, reliability.png and, if settings were searched, trials.png."""
    # The figures that are also files.
    evaluation = Evaluation.of(story.predictions, story.dataset)
    trust = sections.trust(story, evaluation)
    tuning = sections.tuning(story)
    if story.history:
        with _beside(folder / "curves.png") as staging:
            figures.save(staging, [figures.curves(story.history, name) for name in ("loss", "accuracy")])
    with _beside(folder / "confusion.png") as staging:
        figures.save_confusion(staging, evaluation)
    with _beside(folder / "reliability.png") as staging:
        figures.save(staging, [panel.draw for panel in trust.panels], columns=3)
    if tuning:
        with _beside(folder / "trials.png") as staging:
            figures.save(staging, [panel.draw for panel in tuning.panels])
    # The page.
    html = _page().render(
        story=story,
        evaluation=evaluation,
        head=sections.headline(story, evaluation),
        brief=sections.brief(story, evaluation),
        curves=sections.curves(story),
        confusion=sections.confusion(evaluation),
        trust=trust,
        tuning=tuning,
        cases=cases.cases(story, evaluation),
        sheet=cases.sheet(story),
        findings=findings.describe_findings(story),
        tables=sections.tables(story),
    )
    with _beside(folder / "report.html") as staging:
        staging.write_text(html, encoding="utf-8", errors="replace")  # a file's name may hold bytes that UTF-8 cannot


def _page() -> Template:
    home = Path(__file__).parent
    page = Environment(
        loader=FileSystemLoader(home), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    page.filters.update(percent=text.percent, duration=text.duration, number=text.number, clean=text.clean)
    page.filters["path"] = text.path_html
    return page.get_template("report.html.j2")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a path to write to, and rename the file to `path` at the end."""
    staging = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield staging
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
