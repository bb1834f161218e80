"""Classify thousands of pictures: predict.py.

In: a Model, and what was named on the command line. Out: rows in files, sorted copies, and a summary.

find (files, folders, globs, addresses, a CSV or stdin → pictures, in order, with the truth where it is known)
→ run (streams them through the model, row by row into the outputs) → outputs: table_file (CSV, JSON, JSON lines, and
    going on with a CSV that was broken off), submission (Kaggle's), sort_into (folders of copies or links)
→ summary (counts, failures, accuracy and confusions).
row is what is written of one picture.
"""
