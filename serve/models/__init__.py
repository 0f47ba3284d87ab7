"""A model's life in a replica: room on its GPU, load, warm-up and check, the versions that answer, retirement."""
