"""What `kvblend calibrate` measures, on a running vLLM server."""
