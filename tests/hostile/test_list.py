"""No line of docs/hostile-inputs.md is without a test that names it.

python -m tests.hostile.test_list        # which tests stand for which line
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict

from tests.support.servers import ROOT

LIST = (ROOT / "docs" / "hostile-inputs.md").read_text().split("## Faults")[0]
LINES = set(re.findall(r"^\| (\d+[ab]?) \|", LIST, re.MULTILINE))
NAMED = re.compile(r"Hostile inputs? ((?:\d+[ab]?(?:, | and |–)?)+)")


def lines_by_test() -> dict[str, list[str]]:
    found = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for numbers in NAMED.findall(ast.get_docstring(node) or ""):
                    for number in re.findall(r"\d+[ab]?", numbers):
                        found[number].append(f"{path.name}::{node.name}")
    return found


def test_every_line_of_the_list_has_a_test_that_names_it() -> None:
    found = lines_by_test()
    assert len(LINES) == 55
    assert set(found) == LINES, {"missing": LINES - set(found), "unknown": set(found) - LINES}


if __name__ == "__main__":
    tests = lines_by_test()
    for line in sorted(tests, key=lambda text: (int(text.rstrip("ab")), text)):
        print(f"{line:>3}  {'  '.join(tests[line])}")
