"""A Ray of one driver's own: it starts, has its HAProxy and its memory for itself, and leaves nothing behind."""
