"""Compute what a client asks: in this process, or at a server.

In: pictures. Out: for each a Result, or the error that is that picture's own; a service that fails raises.

backend is the interface of all. gateway sends pictures to a Loupe gateway, which does the rest. tensors prepares pixels
and decides here, for a model that is asked in tensors: in_process (an engine), over_grpc and over_rest (any TensorFlow
Serving). http keeps connections for the two that need it; patience asks again while a service is away for a moment.
"""
