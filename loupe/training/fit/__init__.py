"""Fitting a network.

In: a network, and pixels or features of pictures. Out: its best state, and a row of history for every epoch.

feature_cache (what a frozen backbone makes of each picture, computed once) or augment (pictures seen otherwise)
→ batches (the same ones in every run of a seed) → stage (trains, keeps the best state, survives a kill).
"""
