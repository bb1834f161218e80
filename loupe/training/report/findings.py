"""The doctor's findings as the report shows them: a heading for each, the gravest first, with thumbnails.

describe_findings(story)      # labels that look wrong, findings, skipped files
"""

from __future__ import annotations

from dataclasses import dataclass, field

from markupsafe import Markup

from loupe.training.data.doctor import Finding
from loupe.training.data.layout import File
from loupe.training.report import thumbnails
from loupe.training.report.story import Story
from loupe.training.report.text import clean, count_of, percent, quoted, relative_path
from loupe.training.report.thumbnails import Thumbnail

GROUPS = 12  # of one finding: sets of one picture, or single pictures
BESIDE = 5  # pictures of one group, side by side
LINES = 20
SUSPECTS = 18  # labels that look wrong
SIDE = 128  # px
GRAVITY = ("error", "warning", "note")


@dataclass(frozen=True)
class PictureView:
    path: str
    thumbnail: Thumbnail | None
    note: str = ""


@dataclass(frozen=True)
class GroupView:
    pictures: list[PictureView]
    text: str = ""


@dataclass(frozen=True)
class FindingView:
    title: str
    severity: str
    text: str = ""
    groups: list[GroupView] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    more: int = 0

    @property
    def grave(self) -> bool:
        return self.severity == GRAVITY[0]


def describe_findings(story: Story) -> list[FindingView]:
    views = (
        [_finding_view(story, finding) for finding in story.findings.groups] if story.findings else _skipped_view(story)
    )
    all_views = [*_label_error_view(story), *_doubted_view(story), *views]
    return sorted(all_views, key=lambda view: GRAVITY.index(view.severity))


def _label_error_view(story: Story) -> list[FindingView]:
    errors = story.label_errors
    if not errors:
        return []
    worst = sorted(errors, key=lambda error: -error[2])[:SUSPECTS]
    groups = _labelled_pictures(
        story, [(row, likelier, f" ({percent(1 - wrong, 0)} likely)") for row, likelier, wrong in worst]
    )
    right = sum(1 - wrong for *_, wrong in errors)
    text = (
        f"Models that had not learnt from these pictures say otherwise than their labels. About {right:.0f} of the "
        f"{len(errors)} are expected to be right all the same. Have a person decide; label_errors.csv has them all."
    )
    title = f"{count_of(len(errors), 'label')} that may be wrong"
    return [FindingView(title, "warning", text, groups, more=len(errors) - len(groups))]


def _doubted_view(story: Story) -> list[FindingView]:
    if not story.doubted:
        return []
    groups = _labelled_pictures(story, [(row, likelier, "") for row, likelier in story.doubted])
    text = (
        "Models that had not learnt from these pictures say otherwise than their labels, but no more often than they "
        "err. Most of these labels may be right; if some are wrong, they are likely among these."
    )
    return [FindingView(f"{count_of(len(groups), 'label')} to look at first", "note", text, groups)]


def _labelled_pictures(story: Story, pictures: list[tuple[int, int, str]]) -> list[GroupView]:
    """Return each picture, given as (row, likelier class, remark on its label), with what it is and what it looks
    like."""
    data = story.dataset
    thumbnails_of = thumbnails.thumbnails((data.pictures[row].file.path for row, *_ in pictures), SIDE)
    groups = []
    for row, likelier, remark in pictures:
        path = data.pictures[row].file.path
        label, better = (quoted(story.label_html(data.labels[number])) for number in (data.classes[row], likelier))
        note = Markup("labelled {}{}, looks like {}").format(label, remark, better)
        groups.append(GroupView([PictureView(relative_path(path, data.root), thumbnails_of[path], note)]))
    return groups


def _finding_view(story: Story, finding: Finding) -> FindingView:
    """Return one finding with its pictures."""
    # Thumbnails of the first pictures of each set.
    sets = (finding.sets or [[row] for row in finding.rows])[:GROUPS]
    rows_shown = [rows[:BESIDE] for rows in sets]
    data = story.dataset
    thumbnails_of = thumbnails.thumbnails((data.pictures[row].file.path for rows in rows_shown for row in rows), SIDE)
    groups = []
    for rows, all_rows in zip(rows_shown, sets, strict=True):
        files = [data.pictures[row].file for row in rows]
        views = [
            PictureView(relative_path(file.path, data.root), thumbnails_of[file.path], _label_and_split(story, file))
            for file in files
        ]
        groups.append(GroupView(views, f"and {len(all_rows) - len(rows)} more" if len(all_rows) > len(rows) else ""))
    # Files that are in no row are listed by name.
    pairs = list(zip(finding.paths, finding.whys, strict=True))
    lines = [_file_line(relative_path(path, data.root), why) for path, why in pairs[:LINES]]
    more = len(finding.sets or finding.rows) - len(groups) + len(pairs) - len(lines)
    return FindingView(clean(finding.text), finding.severity, "", groups, lines, more)


def _label_and_split(story: Story, file: File) -> str:
    return Markup(" · ").join(filter(None, (file.label and story.label_html(file.label), file.split)))


def _file_line(path: str, why: str) -> str:
    return Markup("<bdi>{}</bdi>: {}").format(path, clean(why))


def _skipped_view(story: Story) -> list[FindingView]:
    """Return the skipped files if no doctor has looked; otherwise the findings have them."""
    skipped, root = story.dataset.skipped, story.dataset.root
    if not skipped:
        return []
    lines = [_file_line(relative_path(skipped_file.path, root), skipped_file.why) for skipped_file in skipped[:LINES]]
    return [
        FindingView(f"{count_of(len(skipped), 'file')} left out", "warning", "", [], lines, len(skipped) - len(lines))
    ]
