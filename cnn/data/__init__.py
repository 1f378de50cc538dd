"""Images and labels: GTSRB, image files, splits."""
