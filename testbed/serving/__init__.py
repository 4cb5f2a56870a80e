"""A node: Open Inference Protocol server and client, and the engine that executes plans over them."""
