"""Decide whether a model's outputs are logits or probabilities, from its last operation or layer and from its answers.

frozen = inlined(tf.function(call).get_concrete_function(spec))
ending_of(frozen.graph, frozen.answer)    # softmax, sigmoid, linear, "tanh" …; None: not known
ending = Ending("softmax", "operation")
decide(path, asked, ending, answers)      # logits, softmax or sigmoid, and how that is known; raises UserError
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from loupe.errors import UserError
from loupe.export.source import Array

# Operations that leave the values as they are.
PASSING = {"Identity", "Cast", "Squeeze", "Reshape", "ExpandDims", "StopGradient", "EnsureShape", "Enter", "Snapshot"}
LINEAR = {"MatMul", "BiasAdd", "Conv2D"}
ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "linear"}  # log probabilities are logits
OTHER_ACTIVATIONS = {"Tanh", "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Softplus", "Softsign"}
SUM_TOLERANCE = 0.01  # how far the sum of a row of probabilities may be from 1: half precision rounds
RANDOM = ("Random", "StatelessRandom", "StatefulUniform", "StatefulStandardNormal", "Multinomial")
LEAST_SPREAD = 1e-6  # of an output between two pictures: with less, the answers tell nothing


@dataclass(frozen=True)
class Inlined:
    graph: Any  # GraphDef
    image: str  # name of the input tensor
    answer: str  # name of the output tensor


@dataclass(frozen=True)
class Ending:
    activation: str | None = None  # softmax, sigmoid, linear or another; None: not known
    origin: str = "operation"  # where the activation was read from: operation or layer


def inlined(function: Any) -> Inlined:
    """Return the function as one graph, its variables made constants, its functions inlined."""
    frozen = convert_variables_to_constants_v2(function)
    return Inlined(frozen.graph.as_graph_def(), frozen.inputs[0].name, frozen.outputs[0].name)


def is_random(frozen: Inlined) -> bool:
    """Return True if the answer depends on a random operation."""
    nodes = {node.name: node for node in frozen.graph.node}
    seen, waiting = set(), [nodes[frozen.answer.partition(":")[0]]]
    while waiting:
        node = waiting.pop()
        if node.name not in seen:
            seen.add(node.name)
            waiting += _inputs(nodes, node)
    return any(nodes[name].op.startswith(RANDOM) for name in seen)


def ending_of(graph: Any, answer: str) -> str | None:
    nodes = {node.name: node for node in graph.node}
    node = nodes[answer.partition(":")[0]]
    while node.op in PASSING:
        node = _inputs(nodes, node)[0]
    if node.op in ACTIVATIONS or node.op in OTHER_ACTIVATIONS:
        return str(ACTIVATIONS.get(node.op, node.op.lower()))
    if node.op in LINEAR:
        return "linear"
    if node.op in ("Add", "AddV2"):  # Keras 3 adds a bias this way
        inputs = _inputs(nodes, node)
        while inputs[0].op in PASSING:
            inputs = [*_inputs(nodes, inputs[0])[:1], *inputs[1:]]
        if inputs[0].op in ("MatMul", "Conv2D") and any(_is_constant(nodes, other) for other in inputs[1:]):
            return "linear"
    return None


def _inputs(nodes: dict[str, Any], node: Any) -> list[Any]:
    return [nodes[name.partition(":")[0]] for name in node.input if not name.startswith("^")]


def _is_constant(nodes: dict[str, Any], node: Any) -> bool:
    while node.op in PASSING:
        node = _inputs(nodes, node)[0]
    return bool(node.op == "Const")


def decide(path: Path, asked: str | None, ending: Ending, answers: Array) -> tuple[str, str]:
    """Return logits, softmax or sigmoid, and how that is known. `asked` is what --ends-in says."""
    if answers.shape[1] == 1 and "softmax" in (asked, ending.activation):
        raise UserError(f"{path} ends in a softmax of one output, which is always 1: it tells nothing.")
    if asked:
        _check_asked(path, asked, ending, answers)
        return asked, "by --ends-in"
    if ending.activation not in (None, "softmax", "sigmoid", "linear"):
        raise UserError(
            f"{path} ends in {ending.activation}, which is no logits, softmax or sigmoid: if its outputs can be taken "
            "for one of these, say which by --ends-in logits, or the like."
        )
    if answers.shape[1] == 1:
        return _decide_single(path, ending)
    return _decide_several(path, ending, answers)


def _decide_single(path: Path, ending: Ending) -> tuple[str, str]:
    if ending.activation == "sigmoid" or (ending.activation == "linear" and ending.origin == "layer"):
        return ("sigmoid" if ending.activation == "sigmoid" else "logits"), f"by its last {ending.origin}"
    raise UserError(
        f"{path} has one output, and does not tell what it is: say --ends-in logits, or --ends-in sigmoid where it is "
        "a probability."
    )


def _decide_several(path: Path, ending: Ending, answers: Array) -> tuple[str, str]:
    sums_to_one, how = _sum_to_one(answers), f"by its last {ending.origin}"
    if ending.activation == "sigmoid":
        raise UserError(f"{path} ends in {answers.shape[1]} sigmoids, several labels at once; Loupe gives one label.")
    if ending.activation == "softmax" and sums_to_one:
        return "softmax", how
    if ending.activation == "linear" and (ending.origin == "layer" or not sums_to_one):
        return "logits", how
    # Logits do not sum to 1 by chance.
    if ending.activation is None and sums_to_one and np.ptp(answers, axis=0).max() > LEAST_SPREAD:
        return "softmax", "by its answers"
    if not _in_unit_range(answers):
        return "logits", "by its answers"
    if sums_to_one:
        raise UserError(f"{path} gives rows that add up to 1, and no softmax: say --ends-in softmax, or logits.")
    raise UserError(
        f"{path} gives outputs from 0 to 1 that do not add up to 1, as for several labels at once, and Loupe gives "
        "one. If they are logits after all, say --ends-in logits."
    )


def _check_asked(path: Path, asked: str, ending: Ending, answers: Array) -> None:
    """Refuse --ends-in where the answers or the last activation contradict it."""
    if asked == "sigmoid" and answers.shape[1] > 1:
        raise UserError(f"{path} ends in {answers.shape[1]} sigmoids, several labels at once; Loupe gives one label.")
    if asked == "sigmoid" and not _in_unit_range(answers):
        raise UserError(f"--ends-in says sigmoid, and {path} gives {_range_text(answers)}, which is no probability.")
    if asked == "softmax" and not _sum_to_one(answers):
        raise UserError(
            f"--ends-in says softmax, and the outputs of {path} do not add up to 1; they are {_range_text(answers)}."
        )
    if asked == "logits" and ending.activation in ("softmax", "sigmoid"):
        raise UserError(
            f"--ends-in says logits, and the last {ending.origin} of {path} is a {ending.activation}: leave it out."
        )


def _in_unit_range(answers: Array) -> bool:
    return bool((answers >= 0).all() and (answers <= 1).all())


def _sum_to_one(answers: Array) -> bool:
    return bool(_in_unit_range(answers) and np.abs(answers.sum(axis=1) - 1).max() <= SUM_TOLERANCE)


def _range_text(answers: Array) -> str:
    return f"from {answers.min():.3g} to {answers.max():.3g}"
