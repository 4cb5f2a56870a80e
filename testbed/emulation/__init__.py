"""The emulated network: sandbox, links, shaping, delay, containers and hosts. Knows nothing of models or policies."""
