"""A model server with TensorFlow Serving's flags and answers: `python -m loupe.modelserver --help`.

In: calls over gRPC and HTTP, and a folder of versions that is polled. Out: TensorFlow Serving's answers, in its words.

flags → versions (polls the folder, loads and unloads) → warmup (replays a version's own requests) → loupe/engines;
service (gRPC) and rest (HTTP) both ask answers. rest turns JSON into messages by json_tensors, and stands on
connections (uvicorn).
"""
