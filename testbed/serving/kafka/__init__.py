"""Kafka as the transport between nodes: messages through topics in place of HTTP exchanges, the same rows in the tables."""
