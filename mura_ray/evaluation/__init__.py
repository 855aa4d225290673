"""From an ensemble and a converted split to evidence: predictions, what they are worth, and the report's files."""
