"""The lab's Spark: a standalone cluster, a YARN cluster, or both, on the lab's nodes and one more machine each."""
