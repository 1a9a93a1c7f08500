"""What is learned from: files of ranges and records, as places with labels and as pairs; and what is held out."""
