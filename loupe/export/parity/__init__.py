"""The parity gate: publish nothing that answers otherwise than its source.

In: an exported version, its source, and pictures. Out: the card's entry `parity`, and a table on the terminal;
UserError if a stage differs.

gate (the stages in order, and the table) → training_notes (what training wrote of its held-out pictures),
    engines (TensorFlow's session and OpenVINO, in this process), service (serve.py, over HTTP)
    → tolerance (how far answers may differ)

If you find a fault that the gate misses, plant it in tests/export/test_parity.py and make the gate catch it.
"""
