"""What is learned from the training rows alone, and the tensors made with it; read table.py first."""
