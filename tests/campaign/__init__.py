"""Campaigns: many wrong inputs, kills and attacks, by a seed. ``scripts/campaign`` runs the long form, CI the short."""
