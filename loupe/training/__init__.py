"""Training: from a folder of pictures to a run that can be published. The wing that needs TensorFlow.

In: a folder or a CSV of pictures, and settings. Out: runs/<name>/, with the model, its card, metrics and report.

settings ← recipes (the settings for a known problem) → data/ (read, check, split) → pipeline → network/ (the backbone),
fit/ (cached features, head, fine-tuning), tune/ (--tune), evaluate/ (calibrate, measure) → artifacts → report/.
run is the folder of a run, complete or absent; progress the bar on the terminal.

Random draws of an epoch depend on the seed and the epoch alone, and all state goes into one file that is renamed into
place. That is why a killed run ends as the undisturbed one. Keep both when you add a callback.
"""
