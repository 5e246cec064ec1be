"""What is made of finished runs: tables, comparisons, Grad-CAM; and how many runs are started."""
