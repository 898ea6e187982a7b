"""A trained detector at work: from whatever holds images to detections, pictures and files."""
