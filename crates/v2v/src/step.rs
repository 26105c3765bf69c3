//! A conversion is an ordered table of steps; each does one thing to the staged guest and says what it did.
