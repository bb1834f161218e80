"""Helpers that tests share.

servers: a model server as a process, free ports, waiting until something happens
gateways: a gateway under gunicorn, and an internet of one function
browsers: a page in a real Chromium, held to what every page promises; axe
backends: a gRPC server in place of the model, that misbehaves as it is told
replicas, crowd: many model servers of a fixed service time, and callers that count which of them answered
models, networks: SavedModels and Keras networks made in seconds
pictures, shapes, problems: pictures, drawn classes, and data sets in the layouts of known problems
corrections: folders of corrections as the gateway and a review leave them
containers: images and docker-compose projects on a real Docker engine
stand_ins: nginx and Prometheus from Debian's packages, where no registry can be reached
hostile, hostile_pictures: raw requests, and files made to harm
traffic: callers that ask all the time and keep count of what they saw
publishing: child processes that publish
kubernetes, kubernetes_policy: the manifests, rendered; the rules that they keep
pace: how fast this machine is just now, for tests marked `timing`
"""
