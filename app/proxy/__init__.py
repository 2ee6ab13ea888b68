"""In front of the chat APIs: input stage, upstream, output stage, unary and streamed."""
