# TensorFlow Serving with the models of this folder baked in.
#   docker build -f image-model.dockerfile -t loupe-model .
#   docker run --rm --init -p 8500:8500 -p 8501:8501 loupe-model --tensorflow_intra_op_parallelism=2 --grpc_max_threads=64
# Arguments replace those of CMD below. --init: the entrypoint is a shell that hands no signal on.
# With a GPU: --build-arg SERVING=2.19.1-gpu, and docker run --gpus all
ARG SERVING=2.20.0
FROM tensorflow/serving:${SERVING}

ENV MODEL_NAME=tires
COPY deploy/serving /etc/loupe
COPY models /models

USER 10001
# This image has no curl: bash asks whether the port is open, and it opens once the model is loaded.
HEALTHCHECK --interval=2s --timeout=2s --start-period=60s --retries=5 \
  CMD ["bash", "-c", "</dev/tcp/localhost/8500"]
# Four threads a processor, the default of grpc_max_threads, are too few: a gateway's worker asks for sixteen calls at a
# time (LOUPE_THREADS + LOUPE_FETCHES). These are for four of them. Connections end after 20 s, so that gRPC clients
# other than our gateway find further model servers.
CMD ["--monitoring_config_file=/etc/loupe/monitoring.txt", "--grpc_max_threads=64", \
     "--grpc_channel_arguments=grpc.max_connection_age_ms=20000"]
