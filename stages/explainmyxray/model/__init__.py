"""The base model, its adapter, 4-bit weights, and what goes into the model; this room knows no finding."""
