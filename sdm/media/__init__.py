"""Photos and sounds of the user, as arrays: checked, limited in size, without torch."""
