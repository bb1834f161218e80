"""A model server with TensorFlow Serving's flags and answers: `python -m loupe.modelserver --help`.

flags → versions (polls the folder, loads and unloads) → warmup → loupe/engines

service (gRPC) and rest (HTTP) both call answers.
"""
