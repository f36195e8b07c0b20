"""One file, or one package, is one source; its name is the value of `source` in the metadata."""
