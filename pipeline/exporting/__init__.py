"""Exports: what is committed, in the formats of other tools. Streamed, resumable, never half a file."""
