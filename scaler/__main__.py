"""`python -m scaler`: the same as `pilotlight`."""

from scaler.cli import main

main()
