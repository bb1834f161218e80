"""Models made elsewhere: Keras files and SavedModels of unknown origin.

In: a .keras, .h5 or SavedModel, and what its maker alone knows. Out: a source, as one from a run of Loupe's own.

read → vet_keras or vet_savedmodel (what it holds, before any library builds it) → keras2 (files of Keras 2), savedmodel
→ original (what was read) → output_kind (logits or probabilities), scaling, labels → adopt (flat, with logits, so that
it gets a heat map).
"""
