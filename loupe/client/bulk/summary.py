"""Sum up many answers: counts a label, what failed and why, and accuracy where the truth is known.

summary = Summary(labels, truths_given=False, before=0)
summary.add(row, truth)
print(summary.text(seconds))
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict

from loupe.cli import plain
from loupe.client.bulk.row import Row
from loupe.client.result import DOUBTS

MOST_REASONS, MOST_EXAMPLES, MOST_LABELS = 8, 3, 20
LEAST_FOR_RATE = 20  # pictures; fewer tell little of the rate
SHORTEST_NAME = 4  # characters; a shorter one may be a word of any text


class Summary:
    def __init__(self, labels: tuple[str, ...], *, truths_given: bool, before: int) -> None:
        """`truths_given`: they are of a CSV, not folders' names. `before`: how many pictures an earlier run did."""
        self._labels, self._truths_given, self._before = labels, truths_given, before
        self.count = self.failed = 0
        self.unsorted: list[str] = []  # why
        self._by_label: Counter[str] = Counter()
        self._doubts: Counter[str] = Counter()
        self._failures: dict[str, list[str]] = defaultdict(list)  # reason → files, the first few
        self._failure_counts: Counter[str] = Counter()
        self._truths: Counter[tuple[str, str]] = Counter()  # truth, answer
        self._without_truth = 0
        self._unknown_truth = ""  # an example

    def add(self, row: Row, truth: str | None) -> None:
        self.count += 1
        if row.error:
            self.failed += 1
            reason = _without_name(row)
            self._failure_counts[reason] += 1
            if len(self._failures[reason]) < MOST_EXAMPLES:
                self._failures[reason].append(row.file)
            return
        self._by_label[row.label] += 1
        if row.certain is False:
            self._doubts[row.reason] += 1
        if truth in self._labels:
            self._truths[str(truth), row.label] += 1
        else:
            self._without_truth += 1
            self._unknown_truth = self._unknown_truth or truth or ""

    def add_unsorted(self, why: str) -> None:
        """Keep why a picture that was classified could not be put into its label's folder."""
        self.unsorted.append(why)

    def text(self, seconds: float) -> str:
        before = min(self._before, self.count)
        new = self.count - before
        rate = f", {new / seconds:,.0f} a second" if new >= LEAST_FOR_RATE else ""
        earlier = f" ({before:,} of them were done before)" if before else ""
        lines = [f"{_pictures(self.count)} in {seconds:,.1f} s{rate}{earlier}"]
        lines += self._label_lines() + self._doubt_lines() + self._failure_lines() + self._unsorted_lines()
        return "\n".join(lines + self._truth_lines())

    def _label_lines(self) -> list[str]:
        common = self._by_label.most_common(MOST_LABELS)
        width = max((len(plain(label)) for label, _ in common), default=0)
        lines = [f"  {plain(label):<{width}}  {count:>7,}" for label, count in common]
        left = len(self._by_label) - len(common)
        return lines + ([f"  … and {left} more labels"] if left else [])

    def _doubt_lines(self) -> list[str]:
        return [f"{count:,} {DOUBTS.get(reason, reason)}" for reason, count in self._doubts.most_common()]

    def _failure_lines(self) -> list[str]:
        if not self.failed:
            return []
        lines = [f"{_pictures(self.failed)} failed:"]
        for reason, count in self._failure_counts.most_common(MOST_REASONS):
            examples = ", ".join(plain(file, 60) for file in self._failures[reason])
            more = ", …" if count > len(self._failures[reason]) else ""
            lines.append(f"  {count:>5,}  {plain(reason, 200)}\n         {examples}{more}")
        left = len(self._failure_counts) - MOST_REASONS
        return lines + ([f"  … and {left} more reasons"] if left > 0 else [])

    def _unsorted_lines(self) -> list[str]:
        if not self.unsorted:
            return []
        return [f"{_pictures(len(self.unsorted))} not sorted, such as: {plain(self.unsorted[0], 200)}"]

    def _truth_lines(self) -> list[str]:
        """Return accuracy and a table of confusions. The truth counts only if most pictures have one: a single folder
        may be called like a label by chance."""
        known = sum(self._truths.values())
        unknown = []
        if self._truths_given and self._without_truth:
            example = f", such as {plain(self._unknown_truth, 60)!r}" if self._unknown_truth else ""
            unknown = [f"the truth of {_pictures(self._without_truth)} is no label of this model{example}"]
        if not known or (known <= self._without_truth and not self._truths_given):
            return unknown
        right = sum(count for (truth, label), count in self._truths.items() if truth == label)
        whose = "the CSV's labels" if self._truths_given else "their folders' names"
        lines = [f"accuracy {right / known:.1%} of {_pictures(known)}, by {whose}"]
        if self._without_truth and not self._truths_given:
            example = f", such as {plain(self._unknown_truth, 60)!r}" if self._unknown_truth else ""
            unknown = [f"not counted: {_pictures(self._without_truth)} in no folder named by a label{example}"]
        return lines + unknown + self._confusions()

    def _confusions(self) -> list[str]:
        labels = [label for label in self._labels if any(label in pair for pair in self._truths)]
        if len(labels) > MOST_LABELS:
            wrong = Counter({pair: count for pair, count in self._truths.items() if pair[0] != pair[1]})
            return ["most often wrong:"] + [
                f"  {plain(truth)} taken for {plain(label)}: {count:,}"
                for (truth, label), count in wrong.most_common(MOST_REASONS)
            ]
        # A row for each truth, a column for each answer, under numbers where the names would not fit.
        name_width = max(len(plain(label)) for label in labels)
        width = max(4, *(len(f"{count:,}") + 1 for count in self._truths.values()))
        header = "".join(f"{f'({number})':>{width}}" for number in range(1, len(labels) + 1))
        lines = ["the rows are what they are, the columns what was answered:", f"{'':{name_width + 7}}{header}"]
        for number, truth in enumerate(labels, 1):
            counts = "".join(f"{self._truths[truth, label] or '·':>{width}}" for label in labels)
            lines.append(f"  {f'({number})':>4} {plain(truth):<{name_width}}{counts}")
        return lines


def _without_name(row: Row) -> str:
    """Return the reason without the picture's own name, so that equal ones are counted together. The name is replaced
    where it is a whole word: at the beginning, with the folder before it, or in quotes."""
    names = "|".join(re.escape(name) for name in {row.file, os.path.normpath(row.file)})
    folder = "(?:[^(]*/)" + ("?" if len(row.file) >= SHORTEST_NAME else "")
    text = re.sub(rf"^(\w+: )?{folder}(?:{names})(?= )", r"\1it", row.error)
    return re.sub(rf"(['\"])(?:{names})(?=['\"])", r"\1it", re.sub(r"\s+", " ", text)).strip()


def _pictures(count: int) -> str:
    return f"{count:,} picture{'s' * (count != 1)}"
