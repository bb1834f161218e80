"""From a trained network to the SavedModel that is served: the graph, its check, its publication. Needs TensorFlow."""
