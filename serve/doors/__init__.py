"""What clients talk to: REST (asgi.py), gRPC (rpc.py), raw rows, images and pages (predict.py)."""
