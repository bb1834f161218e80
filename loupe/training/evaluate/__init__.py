"""Evaluate a trained network: how accurate it is, and how far its answers can be trusted.

In: a trained network and pictures that did not train it. Out: predictions, calibration and metrics.

evaluate → calibrate (temperature, threshold, familiarity) and metrics (the arithmetic of metrics.json and the report).
heldout writes which pictures were held out, so that the export can be checked and quantised on them.
"""
