"""The pipeline: which stages there are, which of them must run, and the driver that runs them."""
