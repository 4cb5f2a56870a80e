"""Models as ordered stages with exits, their data sets, codecs, catalogue and compute profiles."""
