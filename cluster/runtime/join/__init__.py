"""Joining a Ray cluster that is there already: is it one that this driver can use, and with which token."""
