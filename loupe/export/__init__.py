"""Export a trained network as the SavedModel that is served. Needs TensorFlow, as loupe.training does.

In: a finished run, or a model made elsewhere. Out: models/<name>/<next version>/, a SavedModel with its card.

source (a run; run_folder reads its files) or foreign/ (somebody else's model) → convert (calls all that follows):
    replay_pictures (the pictures to compare on) → variants/ (precision; int8 beside it)
    → graph/ (the SavedModel, its warm-up) → parity/ (the gate: the same answers everywhere)
    → publish/ (the next number, renamed into place)
"""
