"""Operations with a backward pass of our own."""
