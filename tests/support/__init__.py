"""Helpers that tests share.

servers: a model server as a process, free ports, waiting until something happens
gateways: a gateway under gunicorn, and an internet of one function
browsers: a page in a real Chromium, held to what every page promises; axe
backends: a gRPC server in place of the model, that misbehaves as it is told
models, networks: SavedModels and Keras networks made in seconds
pictures, shapes, problems: pictures, drawn classes, and data sets in the layouts of known problems
corrections: folders of corrections as the gateway and a review leave them
hostile, hostile_pictures: raw requests, and files made to harm
traffic: callers that ask all the time and keep count of what they saw
publishing: child processes that publish
pace: how fast this machine is just now, for tests marked `timing`
"""
