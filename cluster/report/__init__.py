"""`report.html`: a run as one self-contained page, drawn from its events and records alone."""
