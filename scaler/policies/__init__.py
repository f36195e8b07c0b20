"""One file is one policy; the file name is the value of `policy` in the metadata."""
