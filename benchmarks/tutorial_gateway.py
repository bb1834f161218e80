"""The gateway of the usual tutorials, for benchmarks/gateway.py to stand beside; nothing in Loupe uses it.

    TF_SERVING_HOST=localhost:8500 gunicorn tutorial_gateway:app    # in benchmarks/

Flask, keras-image-helper (the whole JPEG decoded, nearest pixels, float32 scaled for Xception), and TensorFlow
Serving's own messages: `tensorflow_serving.apis`, which imports TensorFlow, and `tf.make_tensor_proto` from numpy.
Not covered, as there: limits, timeouts that fit, URLs, errors, readiness, several versions.
"""

from __future__ import annotations

import os
from typing import Any

import grpc
import tensorflow as tf
from flask import Flask, Response, jsonify, request
from keras_image_helper import create_preprocessor
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

CLASSES = ["cracked", "normal", "worn"]

channel = grpc.insecure_channel(os.getenv("TF_SERVING_HOST", "localhost:8500"))
stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
preprocessor = create_preprocessor("xception", target_size=(299, 299))
app = Flask("tutorial")


def np_to_protobuf(data: Any) -> Any:
    return tf.make_tensor_proto(data, shape=data.shape)


def prepare_request(pixels: Any) -> Any:
    pb_request = predict_pb2.PredictRequest()
    pb_request.model_spec.name = os.getenv("MODEL_NAME", "tires")
    pb_request.model_spec.signature_name = "serving_default"
    pb_request.inputs["input_8"].CopyFrom(np_to_protobuf(pixels))
    return pb_request


def prepare_response(pb_response: Any) -> dict[str, float]:
    return dict(zip(CLASSES, pb_response.outputs["dense_7"].float_val, strict=True))


@app.post("/predict")
def predict() -> Response:
    pixels = preprocessor.from_path(request.files["file"].stream)
    return jsonify(prepare_response(stub.Predict(prepare_request(pixels), timeout=20.0)))


@app.get("/healthz")
def healthz() -> str:
    return "ok"
