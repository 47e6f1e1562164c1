"""The side-by-side benchmark: the same load through Hostler and its peers. Not installed."""
