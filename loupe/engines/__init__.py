"""What computes a SavedModel, shared by whatever serves or checks one.

In: a version's folder. Out: an engine, which turns arrays into arrays; Refused where it cannot.

choose → savedmodel (read without TensorFlow) and one engine: openvino_engine (no TensorFlow, faster, runs on ARM) or
tensorflow_engine (a TF1 session, which is how TensorFlow Serving loads). engine is what both are; refused is how they
say no.
"""
