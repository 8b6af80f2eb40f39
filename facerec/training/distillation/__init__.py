"""What a student learns from: a teacher's embeddings, cached, also of faces blended from two."""
