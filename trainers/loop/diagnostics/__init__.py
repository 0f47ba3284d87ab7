"""What is recorded of a training: progress, layers, use of the device, traces, workers that hang."""
