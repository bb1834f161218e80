"""The doctor's findings as the report shows them: a heading a kind, the gravest first, thumbnails side by side.

told(story)      # labels that look wrong, findings, skipped files
"""

from __future__ import annotations

from dataclasses import dataclass, field

from markupsafe import Markup

from loupe.training.data.doctor import Finding
from loupe.training.data.layout import File
from loupe.training.report import thumbnails
from loupe.training.report.story import Story
from loupe.training.report.text import clean, counted, percent, quoted, relative
from loupe.training.report.thumbnails import Shown

GROUPS = 12  # of a kind: sets of one picture, or single pictures
BESIDE = 5  # pictures of one group
LINES = 20
SUSPECTS = 18  # labels
SIDE = 128  # px
GRAVITY = ("error", "warning", "note")


@dataclass(frozen=True)
class Seen:
    path: str
    shown: Shown | None
    note: str = ""


@dataclass(frozen=True)
class Group:
    pictures: list[Seen]
    said: str = ""


@dataclass(frozen=True)
class Told:
    title: str
    severity: str
    said: str = ""
    groups: list[Group] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    more: int = 0

    @property
    def grave(self) -> bool:
        return self.severity == GRAVITY[0]


def told(story: Story) -> list[Told]:
    seen = [_of(story, finding) for finding in story.findings.groups] if story.findings else _skipped(story)
    found = [*_label_errors(story), *seen]
    return sorted(found, key=lambda one: GRAVITY.index(one.severity))


def _label_errors(story: Story) -> list[Told]:
    errors, data = story.label_errors, story.dataset
    if not errors:
        return []
    worst = sorted(errors, key=lambda one: -one[2])[:SUSPECTS]
    shown = thumbnails.thumbnails((data.pictures[row].file.path for row, _, _ in worst), SIDE)
    groups = []
    for row, likelier, sure in worst:
        path = data.pictures[row].file.path
        given, better = (quoted(story.named(data.labels[n])) for n in (data.classes[row], likelier))
        note = Markup("labelled {} ({} likely), looks like {}").format(given, percent(1 - sure, 0), better)
        groups.append(Group([Seen(relative(path, data.root), shown[path], note)]))
    said = "Models that had not learnt from these pictures say otherwise than their labels. Have a person decide."
    title = f"{counted(len(errors), 'label')} that may be wrong"
    return [Told(title, "warning", said, groups, more=len(errors) - len(groups))]


def _of(story: Story, finding: Finding) -> Told:
    sets = (finding.sets or [[row] for row in finding.rows])[:GROUPS]
    chosen = [rows[:BESIDE] for rows in sets]
    data = story.dataset
    shown = thumbnails.thumbnails((data.pictures[row].file.path for rows in chosen for row in rows), SIDE)
    groups = []
    for rows, whole in zip(chosen, sets, strict=True):
        files = [data.pictures[row].file for row in rows]
        seen = [Seen(relative(file.path, data.root), shown[file.path], _where(story, file)) for file in files]
        groups.append(Group(seen, f"and {len(whole) - len(rows)} more" if len(whole) > len(rows) else ""))
    pairs = list(zip(finding.paths, finding.whys, strict=True))
    lines = [_line(relative(path, data.root), why) for path, why in pairs[:LINES]]
    more = len(finding.sets or finding.rows) - len(groups) + len(pairs) - len(lines)
    return Told(clean(finding.text), finding.severity, "", groups, lines, more)


def _where(story: Story, file: File) -> str:
    return Markup(" · ").join(filter(None, (file.label and story.named(file.label), file.split)))


def _line(path: str, why: str) -> str:
    return Markup("<bdi>{}</bdi>: {}").format(path, clean(why))


def _skipped(story: Story) -> list[Told]:
    """Where no doctor has looked: the findings have them, too."""
    skipped, root = story.dataset.skipped, story.dataset.root
    if not skipped:
        return []
    lines = [_line(relative(one.path, root), one.why) for one in skipped[:LINES]]
    return [Told(f"{counted(len(skipped), 'file')} left out", "warning", "", [], lines, len(skipped) - len(lines))]
