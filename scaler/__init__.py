"""Pilotlight: a KEDA external scaler for GPU inference."""
