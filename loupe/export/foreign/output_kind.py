"""What a model's outputs are, logits or probabilities: told by what computes them last, and held to its answers.

frozen = inlined(tf.function(call).get_concrete_function(spec))
ending_of(frozen.graph, frozen.answer)    # softmax, sigmoid, linear, "tanh" …; None: its last operation tells nothing
ending = Ending("softmax", "operation")
kind(path, asked, ending, answers)        # logits, softmax or sigmoid, and how that is known; raises UserError
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from loupe.errors import UserError
from loupe.export.source import Array

PASSING = {"Identity", "Cast", "Squeeze", "Reshape", "ExpandDims", "StopGradient", "EnsureShape", "Enter", "Snapshot"}
LINEAR = {"MatMul", "BiasAdd", "Conv2D"}
MEANS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "linear"}  # logarithms of probabilities are logits
ODD = {"Tanh", "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Softplus", "Softsign"}
ONE = 0.01  # how far a row of probabilities may be from adding up to 1: half precision rounds
RANDOM = ("Random", "StatelessRandom", "StatefulUniform", "StatefulStandardNormal", "Multinomial")
APART = 1e-6  # at least, between what two pictures get, for the answers to tell anything


@dataclass(frozen=True)
class Inlined:
    graph: Any  # GraphDef
    image: str  # the names of its tensors
    answer: str


@dataclass(frozen=True)
class Ending:
    kind: str | None = None  # softmax, sigmoid, linear, or another activation's name; None: it does not tell
    by: str = "operation"  # or layer


def inlined(function: Any) -> Inlined:
    """Its variables made constants, its functions inlined."""
    frozen = convert_variables_to_constants_v2(function)
    return Inlined(frozen.graph.as_graph_def(), frozen.inputs[0].name, frozen.outputs[0].name)


def draws_lots(frozen: Inlined) -> bool:
    """Whether anything random is in what its answer is computed from."""
    nodes = {node.name: node for node in frozen.graph.node}
    seen, waiting = set(), [nodes[frozen.answer.partition(":")[0]]]
    while waiting:
        node = waiting.pop()
        if node.name not in seen:
            seen.add(node.name)
            waiting += _given(nodes, node)
    return any(nodes[name].op.startswith(RANDOM) for name in seen)


def ending_of(graph: Any, answer: str) -> str | None:
    nodes = {node.name: node for node in graph.node}
    node = nodes[answer.partition(":")[0]]
    while node.op in PASSING:
        node = _given(nodes, node)[0]
    if node.op in MEANS or node.op in ODD:
        return str(MEANS.get(node.op, node.op.lower()))
    if node.op in LINEAR:
        return "linear"
    if node.op in ("Add", "AddV2"):  # a bias, as Keras 3 adds it
        given = _given(nodes, node)
        while given[0].op in PASSING:
            given = [*_given(nodes, given[0])[:1], *given[1:]]
        if given[0].op in ("MatMul", "Conv2D") and any(_constant(nodes, other) for other in given[1:]):
            return "linear"
    return None


def _given(nodes: dict[str, Any], node: Any) -> list[Any]:
    return [nodes[name.partition(":")[0]] for name in node.input if not name.startswith("^")]


def _constant(nodes: dict[str, Any], node: Any) -> bool:
    while node.op in PASSING:
        node = _given(nodes, node)[0]
    return bool(node.op == "Const")


def kind(path: Path, asked: str | None, ending: Ending, answers: Array) -> tuple[str, str]:
    if answers.shape[1] == 1 and "softmax" in (asked, ending.kind):
        raise UserError(f"{path} ends in a softmax of one output, which is always 1: it tells nothing.")
    if asked:
        _hold(path, asked, ending, answers)
        return asked, "by --ends-in"
    if ending.kind not in (None, "softmax", "sigmoid", "linear"):
        raise UserError(
            f"{path} ends in {ending.kind}, which is no logits, softmax or sigmoid: if its outputs can be taken for "
            "one of these, say which by --ends-in logits, or the like."
        )
    if answers.shape[1] == 1:
        return _of_one(path, ending)
    return _of_many(path, ending, answers)


def _of_one(path: Path, ending: Ending) -> tuple[str, str]:
    if ending.kind == "sigmoid" or (ending.kind == "linear" and ending.by == "layer"):
        return ("sigmoid" if ending.kind == "sigmoid" else "logits"), f"by its last {ending.by}"
    raise UserError(
        f"{path} has one output, and does not tell what it is: say --ends-in logits, or --ends-in sigmoid where it is "
        "a probability."
    )


def _of_many(path: Path, ending: Ending, answers: Array) -> tuple[str, str]:
    whole, how = _add_up(answers), f"by its last {ending.by}"
    if ending.kind == "sigmoid":
        raise UserError(f"{path} ends in {answers.shape[1]} sigmoids, several labels at once; Loupe gives one label.")
    if ending.kind == "softmax" and whole:
        return "softmax", how
    if ending.kind == "linear" and (ending.by == "layer" or not whole):
        return "logits", how
    if ending.kind is None and whole and np.ptp(answers, axis=0).max() > APART:  # what logits do not do by chance
        return "softmax", "by its answers"
    if not _within(answers):
        return "logits", "by its answers"
    if whole:
        raise UserError(f"{path} gives rows that add up to 1, and no softmax: say --ends-in softmax, or logits.")
    raise UserError(
        f"{path} gives outputs from 0 to 1 that do not add up to 1, as for several labels at once, and Loupe gives "
        "one. If they are logits after all, say --ends-in logits."
    )


def _hold(path: Path, asked: str, ending: Ending, answers: Array) -> None:
    """What was asked to the answers."""
    if asked == "sigmoid" and answers.shape[1] > 1:
        raise UserError(f"{path} ends in {answers.shape[1]} sigmoids, several labels at once; Loupe gives one label.")
    if asked == "sigmoid" and not _within(answers):
        raise UserError(f"--ends-in says sigmoid, and {path} gives {_span(answers)}, which is no probability.")
    if asked == "softmax" and not _add_up(answers):
        raise UserError(
            f"--ends-in says softmax, and the outputs of {path} do not add up to 1; they are {_span(answers)}."
        )
    if asked == "logits" and ending.kind in ("softmax", "sigmoid"):
        raise UserError(f"--ends-in says logits, and the last {ending.by} of {path} is a {ending.kind}: leave it out.")


def _within(answers: Array) -> bool:
    return bool((answers >= 0).all() and (answers <= 1).all())


def _add_up(answers: Array) -> bool:
    return bool(_within(answers) and np.abs(answers.sum(axis=1) - 1).max() <= ONE)


def _span(answers: Array) -> str:
    return f"from {answers.min():.3g} to {answers.max():.3g}"
