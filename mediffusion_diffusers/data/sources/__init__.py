"""One converter per source: each lists and reads its files by itself."""
