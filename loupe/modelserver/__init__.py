"""A model server with TensorFlow Serving's flags and answers: `python -m loupe.modelserver --help`.

In: calls over gRPC and HTTP, and folders of versions that are polled. Out: TensorFlow Serving's answers, in its words.

__main__ (reads the flags) → server (its life, from the ports' check to the last call)

flags, config (what the files say that flags name)
    → models (which are served, by name and label) → versions (one model's: polls the folder, loads and unloads)
    → warmup (replays a version's own requests) → batching (where it is wanted) → loupe/engines

service (gRPC, with health) and rest (HTTP)
    → answers → examples (those whose inputs are tf.Examples)

metrics says what is counted; prometheus keeps it where that is wanted.
"""
