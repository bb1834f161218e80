"""The HTTP service: takes pictures, prepares them, asks the model server. Light: nothing here imports TensorFlow."""
