"""Training: a folder of pictures → a run that can be published. The wing that needs TensorFlow."""
