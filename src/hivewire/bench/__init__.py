"""What a message costs here, beside raw loops that have no engine: the workloads, and who runs them."""
