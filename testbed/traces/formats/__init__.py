"""One module per format family: `sniff(source)`, `read(source, column, clip)` and perhaps `write`."""
