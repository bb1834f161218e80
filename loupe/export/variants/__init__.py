"""Write other forms of the same network.

In: a source, or an exported version. Out: one that computes in another type, or a file of another format.

precision (float32 or bfloat16, and which is faster here), int8 (an OpenVINO model in the version's assets), formats
(--to onnx, litert, openvino). Each is compared with its source.
"""
