"""From text to ids and vectors: what a model learns from. Nothing here knows of models."""
