"""Speed and size against the goals of the design: `make bench` prints them as JSON."""
