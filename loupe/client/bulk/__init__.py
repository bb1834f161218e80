"""Classify thousands of pictures: predict.py.

In: a Model, and what was named on the command line. Out: rows in files, sorted copies, and a summary.

find (files, folders, globs, addresses or stdin → pictures, in order, with the truth where it is known), or ids (the
    pictures that a csv_table lists) → run (streams them through the model, row by row into the outputs)
→ outputs: table_file (CSV, JSON, JSON lines, and going on with a CSV that was broken off), submission (Kaggle's),
    sort_into (folders of copies or links), stdout (lines for people)
→ summary (counts, failures, accuracy and confusions).
row is what is written of one picture; target says where it may be written, so that nothing is lost; lock keeps others
from a CSV that is being written, and another model from going on with it.
"""
