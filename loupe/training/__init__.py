"""Training: from a folder of pictures to a run that can be published. Needs TensorFlow, as loupe.export does.

In: a folder or a CSV of pictures, and settings. Out: runs/<name>/, with the model, its card, metrics and report.

settings (flags and their defaults; recipes has those of known problems) → data/ (read, check, split)
→ pipeline (the order of what follows): network/ (the backbone), fit/ (cached features, head, fine-tuning),
    tune/ (--tune), evaluate/ (calibrate, measure)
→ artifacts (the files of a run) → report/.
review/ lets people judge corrections, corrections/ puts accepted ones into a finished run, whose head is trained again.
run is the folder of a run, complete or absent; resume says which one --resume goes on with.

A killed run ends as the undisturbed one. So a new callback draws its random numbers from the seed and the epoch alone,
and keeps its state in the stage's one file, which is renamed into place (fit/stage).
"""
