"""The parity gate: nothing is published that answers otherwise than what it was made from.

In: an exported version, its source, and pictures. Out: what the card and parity.json say of it; Fault if not.

gate (the stages in order, and the table) → training_notes (what the training wrote of its held-out pictures),
engines (TensorFlow's session and OpenVINO, in this process), service (serve.py, over HTTP) → tolerance (how far answers
may lie apart). A new way to break a model needs a planted fault in tests/export/test_parity.py that the gate catches.
"""
