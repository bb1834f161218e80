"""What is recorded of every request: a line in the log, the metrics, a span.

In: what happens to a request while it is answered. Out: logs, /metrics, traces.

record (what is known of the request in hand) → recorder (begins and ends it) → logs, metrics → drift, tracing.
"""
