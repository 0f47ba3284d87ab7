"""Room one: a spec and data become a bundle. Read `trainers/stages.py` first."""
