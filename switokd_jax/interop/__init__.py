"""Other frameworks' files, in and out."""
