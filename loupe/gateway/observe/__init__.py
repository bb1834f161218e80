"""Record every request: a line in the log, the metrics, a span.

In: the request, its stages and its predictions. Out: logs, /metrics, traces.

recorder begins and ends the entry (record) of each request, and gives it to logs, metrics and tracing. logs writes by
line_writer, which waits for no reader. metrics writes to metric_files, and counts the labels of the last predictions
with drift.
"""
