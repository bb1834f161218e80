"""Ask the model server.

In: a function that prepares pictures as a card wants them. Out: an Answer, with the version and card that it is from.

client calls over gRPC, with retries inside the deadline; readiness decides the answer to /readyz.
"""
