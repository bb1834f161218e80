"""Check who may ask: API keys, and pages of other sites (CORS).

In: a request's headers. Out: nothing, or the problem to answer with.

guard (checks every request) → keys (the file of hashes, read again when it changes).
"""
