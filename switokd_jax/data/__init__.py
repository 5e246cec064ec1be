"""Images: where they come from (`sources`), and what the step makes of them (`augment`, `resident`)."""
