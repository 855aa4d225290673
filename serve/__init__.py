"""The HTTP endpoint: Ray Serve around one ensemble."""
