"""Record every request: a line in the log, the metrics, a span.

In: the request, its stages and its predictions. Out: logs, /metrics, traces.

record (the entry of the current request) → recorder (begins and ends entries) → logs, metrics → drift, tracing.
"""
