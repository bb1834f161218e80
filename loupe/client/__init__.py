"""Ask a model from Python: in this process, behind a gateway, or at any TensorFlow Serving, always by the same object.

    >>> import loupe
    >>> model = loupe.load("models/tires")                       # in this process; no server, no TensorFlow
    >>> result = model.predict("data/samples/cracked-1.jpg")
    >>> result.label, result.certain, round(result.scores["normal"], 2)
    ('cracked', True, 0.0)
    >>> result.heatmap.size                                      # where it looked: an image to lay over the picture
    (224, 224)
    >>> [each.label for each in model.predict(["data/samples/normal-1.jpg", "data/samples/cracked-2.jpg"])]
    ['normal', 'cracked']

    model = loupe.connect("http://localhost:9696")               # a gateway; key="…" if it wants one
    model = loupe.connect("grpc://localhost:8500/tires")
    model = loupe.connect("http://localhost:8501", model="tires")
    model.predict(…)                                             # a path, bytes, array, PIL image, address; or many

In a notebook a result shows itself, with its picture.

In: pictures, of any kind named above. Out: a Result for each, or an error of loupe.errors.

connect (from a folder or an address to a Model) → model (predict one, a list, or a stream of pictures) → picture (what
is given, as bytes) and backends (who computes). result is what is said of a picture; notebook shows it as HTML.
bulk is for thousands of pictures: predict.py.
"""
