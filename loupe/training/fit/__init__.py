"""Fitting a network.

In: a network, and pixels or features of pictures. Out: its best state, and a row of history for every epoch.

feature_cache (a frozen backbone's output for each picture, computed once) or augment (varied pictures) → batches (the
same ones in every run of a seed) → stage (trains with an optimizer, keeps the best state, survives a kill; state
writes it).
A head on features learns from scaling (of these, folded into it afterwards), and begins as logistic says.
"""
