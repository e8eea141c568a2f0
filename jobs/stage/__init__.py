"""What the stages are made of: session, parts, decisions, tables."""
