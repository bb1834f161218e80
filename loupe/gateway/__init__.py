"""The HTTP service: takes pictures, prepares them, asks the model server. It does not import TensorFlow.

In: an HTTP request with pictures or their URLs. Out: labels with their confidence, or a problem in JSON.

door/ (sockets, threads) → app (the addresses) → access/ (may this caller ask?) → request/ (read it, fetch its URLs)
→ predictions (a request's pictures, from bytes to results) → decoding (what that may take) → model/ (ask the model
server).
feedback keeps pictures that callers say were given the wrong label.
neighbours is what workers tell each other of their load.
observe/ records every request in the log, the metrics and the trace; docs/ serves /openapi.json and /docs.
settings reads all settings, problems turns errors into answers; page/ and templates/ are what browsers
show: / and /docs, and /model, whose figures model_page prepares.
keys is `python -m loupe.gateway.keys`, which makes an API key.
"""
