"""Publication: models/<name>/, its versions and their numbers.

In: a finished version in a folder beside. Out: the same, renamed to the next number.

publication (the next version, --keep, --rollback) → model_folder (the lock, the ledger of numbers, what lies there).
show is `convert.py --show`. A published number is never used again, and no server sees half a version: what writes into
a model's folder takes the lock and ends by one rename.
"""
