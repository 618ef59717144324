"""The papers' tables and figures as named studies; `dimec.studies.running` has them all."""
