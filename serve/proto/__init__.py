"""Protocol buffers of the gRPC door. The `*_pb2*.py` files are generated from the `.proto` files beside them:

python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. serve/proto/inference.proto serve/proto/health.proto
"""
