"""A module as a graph that other runtimes compute: ONNX, OpenVINO, torch.export's archive."""
