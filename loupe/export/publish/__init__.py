"""Publish versions: models/<name>/ and the numbers in it.

In: a finished version in a staging folder. Out: the same, renamed to the next number.

learnt (what is not worth it) → publication (the next version, --keep, --rollback) → model_folder (the lock, the ledger
of numbers, the files there). earlier says what the version before was right on. show is `convert.py --show`.

A published number is never used again, and no server sees half a version: whatever writes into a model's folder takes
the lock and ends with one rename.
"""
