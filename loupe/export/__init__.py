"""From a trained network to the SavedModel that is served. The other wing that needs TensorFlow.

In: a finished run, or a model made elsewhere. Out: models/<name>/<next version>/, a SavedModel with its card.

source (a run; run_folder reads its files) or foreign/ (somebody else's model) → convert (every step of it):
replay_pictures (what is compared on) → variants/ (precision; int8 beside it) → graph/ (the SavedModel, its warm-up)
→ parity/ (the gate: the same answers everywhere) → publish/ (the next number, renamed into place).
quiet keeps TensorFlow's own notes off the terminal.
"""
