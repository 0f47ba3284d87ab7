"""The quality report: what is odd in a table, in memory or in one pass; read report.py first."""
