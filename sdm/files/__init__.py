"""Files: where they are (`paths`), how the user's are read (`vectors`, `embeddings`), how outputs appear all or none
(`atomic`), and how a run is continued after an interruption (`workspace`, `records`, `locks`).
"""
