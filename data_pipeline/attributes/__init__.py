"""Pictures with attributes: what a picture shows, as yes, no or unknown."""
