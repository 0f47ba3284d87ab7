"""The nodes of a Ray: a function on each of them, and their GPU memory as a resource."""
