"""A model server that takes TensorFlow Serving's flags and answers as it does: `python -m loupe.modelserver --help`.

flags → versions (polls the folder, loads and unloads) → warmup → loupe/engines; service (gRPC) and rest (HTTP)
both ask answers.
"""
