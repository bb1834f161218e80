"""Export models made elsewhere: Keras files and SavedModels of unknown origin.

In: a .keras, .h5 or SavedModel, and what its maker alone knows. Out: a source, as one from a run of Loupe's own.

read → vet_keras or vet_savedmodel (check the content before any library builds it) → keras2 (files of Keras 2),
    savedmodel → original (the model as it was read) → output_kind (logits or probabilities), scaling, labels
    → adopt (make it flat, with logits, so that it gets a heat map)
"""
