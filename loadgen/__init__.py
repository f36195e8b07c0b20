"""Load for experiments: seeded arrivals, senders to real brokers, workers that act like GPU pods."""
