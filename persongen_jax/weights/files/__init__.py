"""Reading and writing containers of arrays: safetensors, pickles, ONNX, directories."""
