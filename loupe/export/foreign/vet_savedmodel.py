"""Check the operations of a SavedModel of unknown origin: only those that compute are allowed, and those of its saver.

refuse_outside_access(folder, saved)      # raises UserError; to be called before anything is loaded
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.framework import op_def_registry

from loupe.cli import plain
from loupe.errors import UserError

STATELESS_BUT_FORBIDDEN = re.compile(  # they read files, start processes or run foreign code
    r"ReadFile|MatchingFiles|ImmutableConst|PyFuncStateless|InitializeTableFromTextFile|GenerateVocabRemapping|Abort"
    r"|DecodeProto.*|EncodeProto|Remote.*|Rpc.*|TPU.*|Reader.*|Debug.*|Copy|CopyHost|.*Dataset.*|.*Iterator.*"
    r"|_?Xla(Launch|Call|Custom|Host|Compile|Run|Send|Recv).*"
)
STATEFUL_BUT_ALLOWED = re.compile(
    r"VarHandleOp|ReadVariableOp|Assign(Add|Sub)?VariableOp|VarIsInitializedOp|VariableShape|DestroyResourceOp"
    r"|DisableCopyOnRead|Variable(V2)?|TemporaryVariable|ResourceGather(Nd)?|ResourceStridedSliceAssign"
    r"|Resource(Scatter|Apply|SparseApply)\w+|StatefulPartitionedCall|If|While|Case|_Arg|_Retval"
    r"|Random(Uniform|UniformInt|StandardNormal|Shuffle|Gamma|Poisson|PoissonV2|Crop)|TruncatedNormal|Multinomial"
    r"|ParameterizedTruncatedNormal|NonDeterministicInts|StatelessRandomGetAlg|Rng(Skip|ReadAndSkip)"
    r"|Stateful(StandardNormal|StandardNormalV2|TruncatedNormal|Uniform|UniformFullInt|UniformInt|RandomBinomial)"
    r"|SampleDistortedBoundingBox(V2)?|Assert|CheckNumerics(V2)?|DeviceIndex|Empty|DeepCopy|GuaranteeConst"
    r"|(Anonymous)?(Mutable)?HashTable(V2)?|LookupTable(Find|Size|Export|Import|Insert|Remove)V2|InitializeTableV2"
    r"|TensorArray\w*|Stack(Push|Pop|Close)?(V2)?"
)
RESTORE_OPS = {"RestoreV2", "Restore", "RestoreSlice"}
SAVE_OPS = {"SaveV2", "Save", "SaveSlices", "MergeV2Checkpoints"}
INIT_COLLECTIONS = ("saved_model_main_op", "main_op", "legacy_init_op")  # collections of operations that loading runs


def refuse_outside_access(folder: Path, saved: SavedModel) -> None:
    if any((folder / name).exists() for name in ("saved_model.cpb", "saved_model.pbtxt")):
        raise UserError(f"{folder} holds a second graph beside saved_model.pb, in another format: it is not loaded.")
    for meta in saved.meta_graphs:
        functions = {function.signature.name: function for function in meta.graph_def.library.function}
        nodes = [*meta.graph_def.node, *(node for function in functions.values() for node in function.node_def)]
        _check_operations(folder, nodes, RESTORE_OPS | SAVE_OPS, functions)
        called = [name for name in meta.object_graph_def.concrete_functions if name in functions]
        _check_operations(folder, _nodes_run(meta, functions, _start_tensors(meta), called), set(), functions)
        restoring = [meta.saver_def.restore_op_name]
        _check_operations(folder, _nodes_run(meta, functions, restoring, []), RESTORE_OPS, functions)


def _check_operations(folder: Path, nodes: Iterable[Any], allowed: set[str], functions: dict[str, Any]) -> None:
    for op in sorted({node.op for node in nodes} - allowed):
        if op in functions:
            continue
        known = op_def_registry.get(op)
        if known is None:
            raise UserError(f"{folder} runs {plain(op, 60)}, which this TensorFlow does not know: it is not loaded.")
        harmless = (
            bool(STATEFUL_BUT_ALLOWED.fullmatch(op)) if known.is_stateful
            else not STATELESS_BUT_FORBIDDEN.fullmatch(op)
        )  # fmt: skip
        if not harmless:
            raise UserError(f"{folder} runs {op}, which may reach outside the model: it is not loaded.")


def _start_tensors(meta: Any) -> Iterator[str]:
    """Yield the tensors that a signature returns, and the operations that loading runs."""
    for signature in meta.signature_def.values():
        for output in signature.outputs.values():
            yield from (component.name for component in output.composite_tensor.components)
            yield from (output.coo_sparse.values_tensor_name, output.coo_sparse.indices_tensor_name)
            yield output.name
    for name in INIT_COLLECTIONS:
        yield from meta.collection_def[name].node_list.value if name in meta.collection_def else ()


def _nodes_run(meta: Any, functions: dict[str, Any], starts: Iterable[str], called: list[str]) -> Iterator[Any]:
    """Yield the nodes that are run for `starts`, and all nodes of the functions that these call."""
    # Begin with the nodes and functions that are asked for.
    nodes = {node.name: node for node in meta.graph_def.node}
    pending_nodes, pending_functions = [_node_name(start) for start in starts], list(called)
    seen: set[str] = set()
    entered: set[str] = set()
    # Follow inputs and calls until nothing new is reached.
    while pending_nodes or pending_functions:
        if pending_nodes:
            name = pending_nodes.pop()
            if name in seen or name not in nodes:
                continue
            seen.add(name)
            reached = [nodes[name]]
            pending_nodes += [_node_name(tensor) for tensor in nodes[name].input]
        else:
            name = pending_functions.pop()
            if name in entered or name not in functions:
                continue
            entered.add(name)
            reached = list(functions[name].node_def)
        yield from reached
        pending_functions += [function for node in reached for function in _called_names(node)]


def _called_names(node: Any) -> Iterator[str]:
    yield node.op  # may be a function's name
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)


def _node_name(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]
