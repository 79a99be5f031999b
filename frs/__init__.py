"""What is known of detectors and their distillation; usable without the pipeline."""
