"""Test the repository's own rules: who imports whom, what is pinned where, and words that no file contains."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loupe.cli import OTHER_WORDS
from tests.support.servers import ROOT

# Boxes are the folders and files directly in loupe/ or in a wing. Each line: a box, and the boxes it imports.
# Draw a new arrow here only if it points down: docs/architecture.md tells which way that is.
SHARED = """
    card            errors images
    cardless        card errors images proto
    cli             errors
    checksums       files
    engines         checksums errors files proto quiet
    errors
    familiarity     errors
    feedback        errors files
    files
    gradcam         errors
    images          errors malloc
    malloc
    prediction      card
    progress
    proto
    quiet           errors
    tfrecord        files
"""
GATEWAY = """
    app             access decoding docs feedback model model_page observe predictions problems request settings
    keys            access
    predictions     decoding model request settings
    decoding        observe request settings
    model_page      observe settings
    feedback        decoding model observe predictions request settings
    door            neighbours observe problems request settings
    docs            problems request settings
    access          observe settings
    model           neighbours observe request settings
    request         observe settings
    neighbours
    observe
    problems
    settings
"""
TRAINING = """
    artifacts       data evaluate pipeline report
    review          report
    corrections     data evaluate network pipeline settings
    pipeline        data evaluate fit network settings tune
    report          data evaluate
    evaluate        data network
    tune            fit
    fit             data
    network         settings
    data
    recipes         settings
    resume          run settings
    run
    settings
"""
EXPORT = """
    convert         graph parity publish replay_pictures source variants
    variants        graph parity replay_pictures source
    parity          graph replay_pictures source
    foreign         graph replay_pictures source
    publish         graph
    source          graph run_folder
    graph
    replay_pictures
    run_folder
"""
MODELSERVER = """
    __main__        flags server
    server          answers batching config flags metrics models prometheus rest service warmup
    rest            answers flags
    service         answers flags health
    health
    warmup          answers examples
    answers         config examples metrics models versions
    examples
    models          config flags metrics versions
    versions        config flags metrics
    batching        config
    config
    prometheus      metrics
    metrics
    flags
"""
CLIENT = """
    connect         backends model
    model           backends picture result
    bulk            model picture result
    backends        picture result
    result          notebook picture
    notebook        picture
    picture
"""
WINGS = {"client": CLIENT, "gateway": GATEWAY, "training": TRAINING, "export": EXPORT, "modelserver": MODELSERVER}
FRONT_DOOR = {("", f"client/{name}") for name in ("connect", "model", "result")}  # what `import loupe` gives
HEAVY = {"tensorflow", "keras"}


def names_in(path: Path) -> Iterator[str]:
    """Every module or name that a file imports, inside of functions and for annotations, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: import by the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports(root: Path) -> dict[str, set[str]]:
    """Each module of root/loupe, and the modules of it that it imports."""
    paths = {module_of(path, root): path for path in (root / "loupe").rglob("*.py")}
    assert paths
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        imported = {name if name in paths else name.rpartition(".")[0] for name in names_in(path)}
        graph[module] = imported & set(paths)
    return graph


def box(module: str) -> str:
    """loupe.gateway.request.fetch is in the box gateway/request, loupe.images.decode in images."""
    _, *names = module.split(".")
    return "/".join(names[:2] if names and names[0] in WINGS else names[:1])


def arrows(root: Path) -> set[tuple[str, str]]:
    pairs = {(box(module), box(other)) for module, others in imports(root).items() for other in others}
    return {(one, other) for one, other in pairs if one != other}


def drawn() -> set[tuple[str, str]]:
    pairs = set(FRONT_DOOR)
    for prefix, drawing in [("", SHARED), *((f"{wing}/", text) for wing, text in WINGS.items())]:
        for line in drawing.strip().splitlines():
            start, *ends = line.split()
            pairs |= {(prefix + start, prefix + end) for end in ends}
    return pairs


def in_a_wing(name: str) -> bool:
    return name.partition("/")[0] in WINGS


def refused(root: Path) -> set[tuple[str, str]]:
    """The arrows that are neither drawn above nor from a wing to what all share."""
    shared = {line.split()[0] for line in SHARED.strip().splitlines()}
    return {(start, end) for start, end in arrows(root) - drawn() if not (in_a_wing(start) and end in shared)}


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def boxes(root: Path) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for start, end in arrows(root):
        graph.setdefault(start, set()).add(end)
    return graph


def test_every_import_is_an_arrow_that_is_drawn() -> None:
    assert refused(ROOT) == set()


def test_every_arrow_that_is_drawn_is_an_import() -> None:
    assert drawn() - arrows(ROOT) == set()


def test_there_is_no_circle_of_imports() -> None:
    assert circle(imports(ROOT)) == []
    assert circle(boxes(ROOT)) == []


@pytest.mark.parametrize(
    ("path", "line", "arrow"),
    [
        ("gateway/settings.py", "from loupe.gateway.access import keys", ("gateway/settings", "gateway/access")),
        ("gateway/observe/logs.py", "    import loupe.gateway.model.client", ("gateway/observe", "gateway/model")),
        ("training/data/splits.py", "from loupe.export import source", ("training/data", "export/source")),
        ("images/api.py", "from loupe.card import Card", ("images", "card")),
        ("errors.py", "from loupe import files", ("errors", "files")),
    ],
)
def test_an_arrow_that_is_added_is_found(tmp_path: Path, path: str, line: str, arrow: tuple[str, str]) -> None:
    shutil.copytree(ROOT / "loupe", tmp_path / "loupe")
    with (tmp_path / "loupe" / path).open("a") as file:
        file.write(f"\n\ndef _planted() -> None:\n    {line.strip()}\n" if line.startswith(" ") else f"\n{line}\n")
    assert refused(tmp_path) == {arrow}


def test_a_circle_that_is_added_is_found(tmp_path: Path) -> None:
    """Within one box, where no arrow tells."""
    shutil.copytree(ROOT / "loupe", tmp_path / "loupe")
    with (tmp_path / "loupe" / "images" / "resize.py").open("a") as file:
        file.write("\n\ndef _planted() -> None:\n    from loupe.images.api import decode\n")
    assert refused(tmp_path) == set()
    assert {"loupe.images.resize", "loupe.images.api"} <= set(circle(imports(tmp_path)))


def test_code_that_stands_in_a_string_imports_what_is_there() -> None:
    """Given to a process of its own, where neither mypy nor an import at the top of a file sees it."""
    modules = {module_of(path, ROOT) for path in [*ROOT.glob("loupe/**/*.py"), *ROOT.glob("tests/**/*.py")]}
    for path in [*ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("loupe/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for module, names in re.findall(r"from ((?:loupe|tests)[\w.]*) import (\w+(?:, \w+)*)", node.value):
                    is_folder = (ROOT / module.replace(".", "/")).is_dir()
                    wanted = {f"{module}.{name}" for name in names.split(", ")} if is_folder else {module}
                    assert wanted <= modules, f"{path}:{node.lineno}"


def test_every_folder_has_a_map_that_names_its_files() -> None:
    for init in (ROOT / "loupe").rglob("*/__init__.py"):
        chart = ast.get_docstring(ast.parse(init.read_text())) or ""
        inside = {path.stem for path in init.parent.glob("*.py")} - {"__init__", "__main__"}
        inside |= {path.parent.name for path in init.parent.glob("*/__init__.py")}
        assert not {name for name in inside if not re.search(rf"\b{name}\b", chart)}, init
        assert "In:" in chart and "Out:" in chart, init


def test_no_module_imports_a_script() -> None:
    outside = {path.stem for path in ROOT.glob("*.py")} | {"benchmarks", "data", "tests", "tools"}
    for path in (ROOT / "loupe").rglob("*.py"):
        assert not {name.split(".")[0] for name in names_in(path)} & outside, path


def test_only_the_gateway_knows_flask() -> None:
    for path in (ROOT / "loupe").rglob("*.py"):
        if not path.is_relative_to(ROOT / "loupe" / "gateway"):
            assert not {name.split(".")[0] for name in names_in(path)} & {"flask", "werkzeug"}, path


def test_proto_loads_no_tensorflow() -> None:
    code = f"import proto, sys; sys.exit(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("script", ["train.py", "convert.py", "serve.py", "gateway.py", "benchmarks/footprint.py"])
def test_an_unknown_flag_is_one_line_and_status_2(script: str) -> None:
    command = [sys.executable, script, *["runs/x"] * (script == "convert.py"), "--halp"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "'--halp' is no flag of this script; did you mean --help?" in done.stderr


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("train.py photos --learning-rate 0.001", "; did you mean --lr?"),
        ("train.py photos --validation_split=0.2", "; did you mean --validation?"),
        ("train.py photos --early-stopping 5", "; did you mean --patience?"),
        ("train.py photos --epcohs 5", "; did you mean --epochs?"),
        ("train.py --data photos", "."),
        ("convert.py model.h5 --classes cup,fork", "; did you mean --labels?"),
        ("serve.py --model cars", "; did you mean --model-name?"),
    ],
)
def test_a_flag_as_others_call_it_is_told_by_its_name_here(command: str, meant: str) -> None:
    """--early-stopping and --learning-rate were taken for --erasing, --data for --decay."""
    done = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"is no flag of this script{meant} --help lists all flags." in done.stderr


def test_the_flags_that_others_call_otherwise_are_flags_of_a_script() -> None:
    sources = "".join((ROOT / script).read_text() for script in ("train.py", "convert.py", "serve.py"))
    sources += (ROOT / "loupe/training/settings.py").read_text()
    for flag in OTHER_WORDS:
        assert f'"{flag}"' in sources or f"    {flag[2:].replace('-', '_')}: " in sources, flag


def test_one_lock_file_pins_one_version_of_each_package_and_names_no_source() -> None:
    lock = json.loads((ROOT / "Pipfile.lock").read_text())
    assert lock["_meta"]["sources"] == []
    versions: dict[str, set[str]] = {}
    for category in lock.keys() - {"_meta"}:
        for name, entry in lock[category].items():
            assert entry["hashes"]
            versions.setdefault(name, set()).add(entry["version"])
    assert {name: pinned for name, pinned in versions.items() if len(pinned) > 1} == {}


def test_no_committed_file_names_a_registry() -> None:
    hosts = "|".join(name + r"\.(org|com)" for name in ("pypi", "pythonhosted", "npmjs", "debian"))
    done = subprocess.run(["git", "grep", "-nIE", hosts], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""
