//! Bad input and broken surroundings: a clear error or a clean close, and nothing lost.
