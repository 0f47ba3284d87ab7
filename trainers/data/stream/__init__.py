"""Tables past memory: passes over pieces in threads, or on every node through Ray Data."""
