"""Pictures as people have them: one opener for all that holds one, and what finds copies."""
