"""How workers meet: their places, the exchange of gradients, small collectives, failures that all raise together."""
