"""A request, from what was sent to the bytes of its pictures.

In: the WSGI environment. Out: bytes for every picture, or the problem that took its place.

body (which of the ways of sending it is; forms reads uploads) → schema (JSON and query, checked)
→ fetch (URLs; addresses decides which hosts may be fetched from, and looks names up).
deadline is how long the caller waits, X-Request-Timeout.
"""
