"""What a checkpoint holds (snapshot.py), its folder on disk, and when it is written and read."""
