"""TensorFlow Serving's REST: its addresses, its JSON, its statuses.

In: requests over HTTP. Out: answers, and errors, in TensorFlow Serving's JSON.

connections (uvicorn: how many connections, how long, how they end) → app (the addresses, bodies, deadlines)
    → json_tensors (JSON to tensors and back) → answers
"""
