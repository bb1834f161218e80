"""Which operations of TensorFlow a SavedModel of unknown origin may hold: those that compute, and those of its saver.

refuse_reaching_out(folder, saved)        # raises UserError; to be called before anything is loaded
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

WITHOUT_STATE_BUT_REACHING_OUT = re.compile(  # files, processes, code of others
    r"ReadFile|MatchingFiles|ImmutableConst|PyFuncStateless|InitializeTableFromTextFile|GenerateVocabRemapping|Abort"
    r"|DecodeProto.*|EncodeProto|Remote.*|Rpc.*|TPU.*|Reader.*|Debug.*|Copy|CopyHost|.*Dataset.*|.*Iterator.*"
    r"|_?Xla(Launch|Call|Custom|Host|Compile|Run|Send|Recv).*"
)
WITH_STATE_AND_HARMLESS = re.compile(
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
RESTORES = {"RestoreV2", "Restore", "RestoreSlice"}
SAVES = {"SaveV2", "Save", "SaveSlices", "MergeV2Checkpoints"}
INIT = ("saved_model_main_op", "main_op", "legacy_init_op")  # what of a graph loading runs, by its collections


def refuse_reaching_out(folder: Path, saved: SavedModel) -> None:
    if any((folder / name).exists() for name in ("saved_model.cpb", "saved_model.pbtxt")):
        raise UserError(f"{folder} holds a second graph beside saved_model.pb, in another format: it is not loaded.")
    for meta in saved.meta_graphs:
        functions = {function.signature.name: function for function in meta.graph_def.library.function}
        everything = [*meta.graph_def.node, *(node for each in functions.values() for node in each.node_def)]
        _check(folder, everything, RESTORES | SAVES, functions)
        names = [each for each in meta.object_graph_def.concrete_functions if each in functions]
        _check(folder, _running(meta, functions, _starts(meta), names), set(), functions)
        restoring = [meta.saver_def.restore_op_name]
        _check(folder, _running(meta, functions, restoring, []), RESTORES, functions)


def _check(folder: Path, nodes: Iterable[Any], also: set[str], functions: dict[str, Any]) -> None:
    for op in sorted({node.op for node in nodes} - also):
        if op in functions:
            continue
        known = op_def_registry.get(op)
        if known is None:
            raise UserError(f"{folder} runs {plain(op, 60)}, which this TensorFlow does not know: it is not loaded.")
        harmless = (
            bool(WITH_STATE_AND_HARMLESS.fullmatch(op)) if known.is_stateful
            else not WITHOUT_STATE_BUT_REACHING_OUT.fullmatch(op)
        )  # fmt: skip
        if not harmless:
            raise UserError(f"{folder} runs {op}, which may reach outside the model: it is not loaded.")


def _starts(meta: Any) -> Iterator[str]:
    """What a signature gives and what loading runs."""
    for signature in meta.signature_def.values():
        for end in signature.outputs.values():
            yield from (each.name for each in end.composite_tensor.components)
            yield from (end.coo_sparse.values_tensor_name, end.coo_sparse.indices_tensor_name)
            yield end.name
    for name in INIT:
        yield from meta.collection_def[name].node_list.value if name in meta.collection_def else ()


def _running(meta: Any, functions: dict[str, Any], starts: Iterable[str], called: list[str]) -> Iterator[Any]:
    """The nodes that are run for `starts`, and all of the functions that these call."""
    nodes = {node.name: node for node in meta.graph_def.node}
    waiting, inside = [_node(start) for start in starts], list(called)
    seen: set[str] = set()
    entered: set[str] = set()
    while waiting or inside:
        if waiting:
            name = waiting.pop()
            if name in seen or name not in nodes:
                continue
            seen.add(name)
            found = [nodes[name]]
            waiting += [_node(each) for each in nodes[name].input]
        else:
            name = inside.pop()
            if name in entered or name not in functions:
                continue
            entered.add(name)
            found = list(functions[name].node_def)
        yield from found
        inside += [each for node in found for each in _calls(node)]


def _calls(node: Any) -> Iterator[str]:
    yield node.op  # which may be a function's name
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)


def _node(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]
