"""Proofs and plans for more devices than one machine has."""
