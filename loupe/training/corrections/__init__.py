"""Add accepted corrections to a finished run, so that its head can be trained again: train.py --add DIR --from RUN.

In: a finished run, and the folder of corrections (loupe/feedback.py). Out: the run's data set with the corrections in
its training part, and a comparison of the head before with the new one.

finished (reads the run) → correct (changes its data set) → the pipeline → compare.
"""
