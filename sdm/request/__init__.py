"""What a user asks for, checked once. Only the standard library is imported here."""
