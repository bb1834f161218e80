"""The pictures of a training: find, read, check and split them.

In: a folder, or pictures and a CSV. Out: a Dataset: pixels, classes, and the rows of each split.

layout (which files there are; names says which count, csv_layout and csv_table read CSVs) → dataset (reads every file
once) → duplicates → splits → doctor (what is wrong with them). record keeps all that in the run. label_errors needs
features, so it comes after training.
download and unpack serve data/fetch.py, which fetches the recipes' data sets.

No picture has two of these roles: training, selection (chooses the epoch and the settings; `validation` in code),
calibration, test (measures). Only where there are no test pictures, the selection pictures measure as well.
"""
