"""The network, its loss, its class activation maps, checkpoints and the ensemble. Knows no data set and no Ray."""
