"""Software-defined network of a trial: what the controller knows, the controller itself, and what starts it."""
