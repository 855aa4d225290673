"""Radiographs to batches: collections of studies, shards, the loader and its augmentation. Knows no model."""
