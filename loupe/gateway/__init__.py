"""The HTTP service: takes pictures, prepares them, asks the model server. Nothing here imports TensorFlow.

In: an HTTP request with pictures or their addresses. Out: labels, how sure, and why not; or a problem in JSON.

door/ (sockets, threads) → app (the addresses) → access/ (may this caller ask?) → request/ (read it, fetch its URLs)
→ predictions (a request's pictures, from bytes to answers) → model/ (ask the model server).
observe/ is told of every request and writes the log, the metrics and the trace; docs/ is /openapi.json and /docs.
settings holds every setting, problems what an error looks like; page/ and templates/ are the page at /.
keys is `python -m loupe.gateway.keys`, which makes an API key.
"""
