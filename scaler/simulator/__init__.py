"""KEDA, the HPA and a cluster, pretended: pure, seeded, without a clock."""
