"""Who runs next on a shared cluster. `scheduler.decide` first: a pure function of state, policy and time."""
