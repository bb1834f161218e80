"""Who may ask: API keys, and other sites' pages (CORS).

In: a request's headers. Out: nothing, or the problem that is its answer.

guard (put before every request) → keys (the file of hashes, read again when it changes).
"""
