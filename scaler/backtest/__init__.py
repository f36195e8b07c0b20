"""Backtests: policies against traces in the simulator, on all cores, with tables, plots and the results matrix."""
