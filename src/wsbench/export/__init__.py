"""A trained network as a plain graph: ONNX, TorchScript, torch.export."""
