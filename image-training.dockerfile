# Training in a container: train.py with all it needs. Pictures, runs and models stay outside, mounted.
#   docker build -f image-training.dockerfile -t loupe-training .
#   mkdir -p runs models
#   docker run --rm --init --user "$(id -u):$(id -g)" -v "$PWD/photos:/app/photos:ro" \
#     -v "$PWD/runs:/app/runs" -v "$PWD/models:/app/models" loupe-training photos
# --user makes what is written yours; with a rootless engine leave it at --user 0, which is you there.
# Ctrl-C ends the epoch's work cleanly. ImageNet's weights and the feature cache are kept in runs/.
# For an NVIDIA GPU (Linux on x86-64, its container toolkit on the host): --build-arg GPU=1, and docker run --gpus all
# For --backbone efficientnetlite0: --build-arg BACKBONE=efficientnetlite0, whose weights are then in the image
FROM python:3.11-slim

ARG GPU=
ARG BACKBONE=
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app

# The packages first: they change less often than the code.
COPY Pipfile Pipfile.lock ./
RUN pip install --no-cache-dir pipenv==2026.10.3 \
 && PIP_NO_CACHE_DIR=1 pipenv sync --system --categories "packages modelserver training export ${GPU:+gpu} ${BACKBONE}" \
 && rm -rf /root/.cache

COPY train.py convert.py ./
COPY loupe loupe
COPY recipes recipes
COPY data/tires.py data/tire_picture.py data/fetch.py data/

# What serves: before a model is published, its answers are compared with those of the whole service.
COPY serve.py gateway.py gunicorn.conf.py ./
COPY data/samples data/samples

# The sample draws its pictures into data/, whoever runs it.
RUN mkdir runs models && chmod 1777 data runs models
USER 10001
ENV HOME=/tmp KERAS_HOME=/app/runs/.keras
ENTRYPOINT ["python", "train.py"]
