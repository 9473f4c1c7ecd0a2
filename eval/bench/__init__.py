"""What `kvblend bench` measures besides quality: times, loads, stores, kernels."""
