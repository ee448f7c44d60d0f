"""What runs on the device: cameras, the loop over a stream, the benchmark and the doctor."""
