"""What runs on a device: images, sessions, latency. Imports nothing but numpy, Pillow and the standard library."""
