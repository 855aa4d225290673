"""The training loop and the choice of members. Knows no Ray: one process group, or none."""
