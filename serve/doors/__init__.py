"""What clients talk to: REST (asgi.py), gRPC (rpc.py), pages and raw rows (human.py); the access log."""
