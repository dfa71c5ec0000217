"""Cluster files for clouds, own hosts and Kubernetes, and what checks them: `python -m study.clusters.check`."""
