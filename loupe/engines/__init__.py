"""Compute a SavedModel's signatures: the engines, shared by the model server and the export.

In: a version's folder. Out: an engine, which turns arrays into arrays; Refused where it cannot.

choose → savedmodel (read without TensorFlow) and one engine: openvino_engine (no TensorFlow, faster, runs on ARM) or
    tensorflow_engine (a TF1 session, which is how TensorFlow Serving loads)

engine is the interface of both; pieces computes a large batch bit by bit; turns keeps callers in order;
machine says what processors and memory there are; refused is their error.
"""
