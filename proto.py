"""Convert between numpy and TensorFlow Serving's gRPC messages, without TensorFlow: all of it is loupe/proto.py.

    channel = grpc.insecure_channel("localhost:8500")
    request = proto.predict_request("tires", {"image": pixels})
    answer = proto.call(channel, proto.PREDICT)(request, timeout=5)
    proto.to_array(answer.outputs["probabilities"])

It lies inside the package because a well-known package is named `proto` as well: with both installed, `import proto`
would find only one of them. Loupe itself imports `loupe.proto`.
"""

from loupe.proto import *  # noqa: F403
