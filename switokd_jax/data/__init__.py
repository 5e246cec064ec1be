"""Data sets (`dataset`), their batches (`loader`), augmentation (`transforms`) and normalization (`normalization`)."""
