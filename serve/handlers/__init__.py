"""One endpoint in one replica, without sockets: its requests (dataplane.py), its changes (controlplane.py)."""
