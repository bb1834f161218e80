"""The pictures of a training: found, read, checked and split.

In: a folder, or pictures and a CSV. Out: a Dataset: pixels, classes, and the rows of each split.

layout (which files are there; names says what counts, csv_layout and csv_table read CSVs) → dataset (every file looked
at once) → duplicates → splits → doctor (what is wrong with them). label_errors is asked once something is trained.
download and unpack are data/fetch.py's: they bring the recipes' data sets.

Training pictures train, validation pictures choose the state, calibration pictures fit, test pictures measure; no
picture does two of these.
"""
