"""Read a request and fetch its URLs, down to the bytes of its pictures.

In: the WSGI environment. Out: for every picture its bytes or a problem.

body (by Content-Type; forms reads uploads) → schema (checks JSON and query)
→ fetch (URLs; addresses looks host names up and decides which may be fetched from; exchange asks a server and reads its
answer).
deadline reads X-Request-Timeout, the time that the caller waits.
"""
