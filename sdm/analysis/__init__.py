"""What follows from maps and records: numbers for Red List assessments, and for zones."""
