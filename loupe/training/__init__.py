"""Training: from a folder of pictures to a run that can be published. The wing that needs TensorFlow.

In: a folder or a CSV of pictures, and settings. Out: runs/<name>/, with the model, its card, figures and report.

settings ← recipes (a known problem's) → data/ (read, check, split) → pipeline → network/ (the backbone), fit/ (cached
features, head, fine-tuning), tune/ (--tune), evaluate/ (calibrate, measure) → artifacts → report/.
run is the folder of a run, whole or not at all; progress the bar on the terminal.

What is drawn at random in an epoch depends on the seed and the epoch alone, and all state goes into one file that is
renamed into place: that is why a killed run ends as the undisturbed one. Keep both when you add a callback.
"""
