"""One module per format family; each has `sniff(source)`, `read(source, column, clip)` and perhaps `write`."""
