# TensorFlow Serving with the models of this folder baked in.
#   docker build -f image-model.dockerfile -t loupe-model .
# With a GPU: --build-arg SERVING=2.19.1-gpu
ARG SERVING=2.20.0
FROM tensorflow/serving:${SERVING}

ENV MODEL_NAME=tires
COPY models /models

# This image has no curl: bash asks whether the port is open, and it opens once the model is loaded.
HEALTHCHECK --interval=2s --timeout=2s --start-period=60s --retries=5 \
  CMD bash -c '</dev/tcp/localhost/8500'
