"""`python -m scaler.cli`: the same as `pilotlight`."""

from scaler.cli import main

main()
