"""Figures from texts, baselines and intervals; this room knows no model."""
