"""Room one: a spec and data become a bundle. `cluster/pipeline/stages.py` names its stages."""
